"""Checks what a server serves: the model, its chat template, the concepts."""

from pathlib import Path

from app.commands.doctor.finding import Finding, ok, problem, readable_size, warning
from app.concepts.store import ConceptStore
from app.configuration import SettingsError, refuse_missing_concepts, refuse_missing_model
from app.errors import StartError
from app.settings import Settings
from app.text.prompts import load_text
from inference.interface.diagnosis import Diagnosis


def check_model(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the model's files are complete, or can be got."""
    try:
        refuse_missing_model(settings)
    except (SettingsError, StartError) as error:
        return problem(str(error), "correct the setting, or the file that it names")
    if diagnosis.model_error:
        return problem(
            diagnosis.model_error,
            "set model.source to a model that is on this machine, or mend the access to the download "
            "(network, proxy, HF_TOKEN, pip's index)",
        )
    model = diagnosis.model
    if model.todo:
        return ok(f"the first start will {model.todo} ({readable_size(model.cache_bytes)} on the disk)")
    return ok(model.directory)


def check_chat(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the model can chat: its tokenizer and chat template can be used."""
    if not diagnosis.model.directory:
        return ok("unknown before the model is here")
    try:
        _, prompts = load_text(Path(diagnosis.model.directory), settings.model.chat_template_file)
    except StartError as error:
        return problem(str(error), "set model.chat_template to the path of a Jinja file that works")
    if prompts is None:
        return warning(
            "the model has no chat template, so it cannot chat",
            "set model.chat_template to the path of a Jinja file, or serve a model that is made for chats",
        )
    return ok("the tokenizer and the chat template work")


def check_concepts(settings: Settings) -> Finding:
    """Whether the directory of shipped concepts is there, and each file can be used."""
    try:
        refuse_missing_concepts(settings)
    except SettingsError as error:
        return problem(str(error), "set steering.concepts to the path of a directory with concept files")
    store = ConceptStore(settings.shipped_concepts, settings.created_concepts)
    concepts = store.read()
    if store.problems:
        faults = "; ".join(f"{fault.file}: {fault.reason}" for fault in store.problems)
        return warning(f"left out: {faults}", "correct these files, or remove them")
    if not settings.shipped_concepts.is_dir():
        return warning(
            f"there is no directory {settings.shipped_concepts}, so there are no shipped concepts",
            "start in Tiller's directory, or set steering.concepts to an absolute path",
        )
    return ok(f"concepts: {len(concepts)}")
