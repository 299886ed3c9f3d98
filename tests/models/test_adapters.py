"""What is saved is a PEFT folder that stock peft loads, and it gives what perdure gives."""

import peft
import pytest
import torch
import transformers
from conftest import write_adapter
from safetensors.torch import load_file

from perdure import Backbone, RunError, Training, learn
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.models.examples import Batch
from perdure.runs import adapter_folder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning"
)  # peft asks transformers
FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_stock_peft_gives_the_same_logits(kind, pico, toy, tmp_path):
    backbone = Backbone.load(pico("bert"))
    adapter = learn(backbone, [toy[1]], Isolated(peft=kind, rank=4), FEW)
    head = backbone.own("colour")
    write_adapter(
        tmp_path / "adapter", adapter, base=str(pico("bert")), head=(backbone.head_name, head)
    )
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(
        pico("bert"), num_labels=3, ignore_mismatched_sizes=True
    )
    model = peft.PeftModel.from_pretrained(stock, str(tmp_path / "adapter")).eval()
    batch = dict(backbone.processor(toy[1].test["text"][:], padding=True, return_tensors="pt"))
    with torch.no_grad():
        torch.testing.assert_close(
            model(**batch).logits, head(backbone(Batch(batch))), rtol=0, atol=1e-5
        )


def test_stock_peft_with_mean_pooling(bert, pico, toy, tmp_path):
    adapter = learn(bert, [toy[0]], Isolated(), FEW)
    write_adapter(tmp_path / "adapter", adapter, base=str(pico("bert")), head=None)
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModel.from_pretrained(pico("bert")), str(tmp_path / "adapter")
    )
    batch = dict(bert.processor(toy[0].test["text"][:], padding=True, return_tensors="pt"))
    with torch.no_grad():
        hidden, mask = model.eval()(**batch).last_hidden_state, batch["attention_mask"][..., None]
        torch.testing.assert_close(
            (hidden * mask).sum(1) / mask.sum(1), bert(Batch(batch)), rtol=0, atol=1e-5
        )


def test_save_and_load_are_exact(bert, toy, tmp_path):
    adapter = learn(bert, [toy[0]], Isolated(peft="bottleneck", rank=3), FEW)
    write_adapter(tmp_path / "adapter", adapter, base="x", head=None)
    again = adapter_folder.load(tmp_path / "adapter", "fruit")
    assert adapters.same(again.parameters, adapter.parameters) and adapters.same(
        again.start, adapter.start
    )
    assert set(load_file(tmp_path / "start.safetensors")) == set(adapter.start)
    assert again.config.width == 3


def test_low_rank_is_what_lora_adds(bert):
    """ΔW from the factors equals the difference that peft's own merge makes."""
    Isolated(rank=4, alpha=6).attach(bert)
    adapters.write(
        bert.model, {k: torch.randn_like(v) for k, v in adapters.read(bert.model).items()}
    )
    layer = next(
        module
        for name, module in bert.model.named_modules()
        if name.endswith("layer.1.attention.self.value")
    )
    B, A = adapters.deltas(adapters.config_of(bert.model), adapters.read(bert.model))[
        "encoder.layer.1.attention.self.value"
    ]
    torch.testing.assert_close(B @ A, layer.get_delta_weight("default"))


def test_bottleneck_is_what_the_paper_says(bert):
    Isolated(peft="bottleneck", rank=2).attach(bert)
    layer = adapters.layers(bert.model)[0]
    torch.nn.init.normal_(layer.bottleneck_up["default"].weight)
    x = torch.randn(3, 32)
    y = layer.base_layer(x)
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.testing.assert_close(layer.eval()(x), y + up(torch.nn.functional.gelu(down(y))))
    names = [
        name for name, module in bert.model.named_modules() if module in adapters.layers(bert.model)
    ]
    assert [name.removeprefix("encoder.layer.") for name in names[:2]] == [
        "0.attention.output.dense",
        "0.output.dense",
    ]
    Isolated(peft="bottleneck", rank=2, target_modules="pfeiffer").attach(bert)
    assert len(adapters.layers(bert.model)) == 2


def test_parameters_of_another_model_are_refused(bert):
    Isolated().attach(bert)
    with pytest.raises(RunError, match="does not fit"):
        adapters.write(
            bert.model, {"encoder.layer.9.attention.self.query.lora_A.weight": torch.zeros(8, 32)}
        )


def test_reading_an_adapter_asks_no_hub(bert, toy, tmp_path):
    """peft would look for the base model's config; a warning, which the tests turn into an error,
    would say so.
    """
    adapter = learn(bert, [toy[0]], Isolated(), FEW)
    write_adapter(tmp_path / "adapter", adapter, base="nobody/nothing", head=None)
    adapters.attach(bert.model, adapter_folder.load(tmp_path / "adapter", "fruit").config)
    adapters.read(bert.model)
