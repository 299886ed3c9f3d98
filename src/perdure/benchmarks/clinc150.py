"""CLINC150: requests to a voice assistant, with 150 intents in ten domains."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from perdure.data.splits import bounded, by_split, of_classes
from perdure.data.table import from_hub
from perdure.data.task import SPLITS, Scenario, Split, Task, TaskStream
from perdure.errors import DataError

# The intents of each domain; the files of the data set name the intents alone.
DOMAINS = {
    "banking": (
        "freeze_account routing pin_change bill_due pay_bill account_blocked "
        "interest_rate min_payment bill_balance transfer order_checks balance "
        "spending_history transactions report_fraud"
    ),
    "credit_cards": (
        "replacement_card_duration expiration_date damaged_card improve_credit_score "
        "report_lost_card card_declined credit_limit_change apr redeem_rewards "
        "credit_limit rewards_balance application_status credit_score new_card "
        "international_fees"
    ),
    "kitchen_and_dining": (
        "food_last confirm_reservation how_busy ingredients_list calories "
        "nutrition_info recipe restaurant_reviews restaurant_reservation "
        "meal_suggestion restaurant_suggestion cancel_reservation "
        "ingredient_substitution cook_time accept_reservations"
    ),
    "home": (
        "what_song play_music todo_list_update reminder reminder_update calendar_update "
        "order_status update_playlist shopping_list calendar next_song order todo_list "
        "shopping_list_update smart_home"
    ),
    "auto_and_commute": (
        "current_location oil_change_when oil_change_how uber traffic tire_pressure "
        "schedule_maintenance gas mpg distance directions last_maintenance gas_type "
        "tire_change jump_start"
    ),
    "travel": (
        "plug_type travel_notification translate flight_status international_visa "
        "timezone exchange_rate travel_suggestion travel_alert vaccines lost_luggage "
        "book_flight book_hotel carry_on car_rental"
    ),
    "utility": (
        "weather alarm date find_phone share_location timer make_call calculator "
        "definition measurement_conversion flip_coin spelling time roll_dice text"
    ),
    "work": (
        "pto_request_status next_holiday insurance_change insurance meeting_schedule "
        "payday taxes income rollover_401k pto_balance pto_request w2 schedule_meeting "
        "direct_deposit pto_used"
    ),
    "small_talk": (
        "who_made_you meaning_of_life who_do_you_work_for do_you_have_pets "
        "what_are_your_hobbies fun_fact what_is_your_name where_are_you_from goodbye "
        "thank_you greeting tell_joke are_you_a_bot how_old_are_you what_can_i_ask_you"
    ),
    "meta": (
        "change_speed user_name whisper_mode yes change_volume no change_language "
        "repeat change_accent cancel sync_device change_user_name change_ai_name "
        "reset_settings maybe"
    ),
}

OUTSIDE = "oos"
"""The label of queries that are out of scope."""


def clinc150(
    *,
    folder: str | None = None,
    tasks: int = 10,
    order_seed: int | None = None,
    train: int | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    scenario: Scenario = "class",
) -> TaskStream:
    """Ten domains of a voice assistant, each a task with fifteen intents, in short queries.

    An intent has 100 training, 20 validation and 30 test queries. The 1,000 test queries
    that are out of scope belong to no task (`evaluation.unknown`).

    The data set is under CC BY 3.0 (Larson et al.).

    Parameters
    ----------
    folder
        A folder with `clinc150.parquet`, with the columns `text`, `label` and `split`,
        and `manifest.json` with the `labels` of `clinc150`. If it is not given,
        `clinc/clinc_oos` (`plus`) is loaded from the Hugging Face hub. That code follows
        the data set's card and has not been run against the hub.
    tasks
        The number of tasks. With 10, a task is a domain. Any other divisor of 150 gives
        tasks of equal size, which go through the domains in order.
    order_seed
        Seed for the order of the domains; by default, the order is fixed and begins with banking.
    train, validation, test
        The approximate number of queries per task in each split, the same for all
        intents; by default all.
    seed
        Seed for the choice of queries.
    scenario
        The scenario: what is known about an input at test time.

    Raises
    ------
    DataError
        The folder lacks a file, a column or an intent, the hub cannot be reached, or the
        number of tasks does not divide the number of intents.

    References
    ----------
    Larson et al., An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction,
    arXiv 1909.02027.
    """
    groups = _groups(tasks, order_seed)
    # By name: the numbers of the labels are in another order, and include the one out of scope.
    labels, data, outside = _from_folder(Path(folder)) if folder else _from_hub()
    intents_of_tasks = set(itertools.chain(*groups.values()))
    missing = intents_of_tasks - set(labels)
    if missing:
        raise DataError(
            f"The labels of CLINC150 lack {len(missing)} of its 150 intents, "
            f"such as `{min(missing)}`."
        )
    sizes: dict[Split, int | None] = {
        "train": train,
        "validation": validation,
        "test": test,
    }
    stream = []
    for name, intents in groups.items():
        # The rows of other intents are dropped, and with them those out of scope.
        numbers = [labels.index(intent) for intent in intents]
        splits: dict[Split, Dataset] = {}
        for split, rows in data.items():
            splits[split] = of_classes(rows, numbers)
        chosen = bounded(splits, sizes, seed)
        task = Task(name, tuple(intents), **chosen)
        stream.append(task)
    return TaskStream("clinc150", tuple(stream), scenario, unknown=outside)


def _groups(tasks: int, order_seed: int | None) -> dict[str, list[str]]:
    """Return the intents of each task."""
    domains = list(DOMAINS)
    if order_seed is not None:
        random = np.random.default_rng(order_seed)
        order = random.permutation(len(domains))
        domains = [domains[i] for i in order]
    by_domain = {}
    for name in domains:
        by_domain[name] = DOMAINS[name].split()
    if tasks == len(domains):
        return by_domain

    intents = list(itertools.chain(*by_domain.values()))
    if tasks < 1 or len(intents) % tasks or tasks == len(intents):
        raise DataError(f"`tasks` must divide 150 into tasks of at least two intents, got {tasks}.")
    # The domains stay together as far as they can: similar intents come in the same task.
    size = len(intents) // tasks
    groups = {}
    for number in range(tasks):
        start = number * size
        name = f"intents{number + 1:02}"
        groups[name] = intents[start : start + size]
    return groups


Loaded = tuple[list[str], dict[Split, Dataset], Dataset | None]
"""The names of the labels, the queries of each split, and those that are out of scope."""


def _from_folder(folder: Path) -> Loaded:
    path = folder / "clinc150.parquet"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        labels = manifest["clinc150"]["labels"]
        # By pyarrow, not `datasets`, which would leave a copy in its cache.
        table = pq.read_table(path)
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"`{folder}` must hold `{path.name}`, and `manifest.json` with `labels` of "
            f"`clinc150`: {error}."
        ) from error
    rows = Dataset(table)
    splits = by_split(rows, ["text", "label"], str(path))
    is_outside = np.array(rows["split"][:]) == "oos_test"
    outside = rows.select_columns(["text"]).select(np.flatnonzero(is_outside))
    return labels, splits, outside if len(outside) else None


def _from_hub() -> Loaded:
    # `plus` has all training queries; the configurations `small` and `imbalanced` have fewer.
    data = from_hub("clinc/clinc_oos", "plus")
    splits: dict[Split, Dataset] = {}
    for split in SPLITS:
        splits[split] = data[split].rename_column("intent", "label")
    labels = data["train"].features["intent"].names
    outside = None
    if OUTSIDE in labels:
        queries = of_classes(splits["test"], [labels.index(OUTSIDE)])
        outside = queries.select_columns(["text"])
    return labels, splits, outside
