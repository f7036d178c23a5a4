"""A question before something that cannot be undone."""

from nicegui import ui

from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, set_attributes


async def confirm(question: str, consequence: str, action: str) -> bool:
    """Ask in a dialog; Esc or a click beside it means no.

    :param question: Such as "Delete this?".
    :param consequence: Sentence below the question.
    :param action: Text of the button that means yes.
    """
    with ui.dialog() as dialog, make_box("dialog", role="document"):
        make_heading(question)
        Text(consequence, "muted", "p")
        with make_box("row-flex end"):
            make_button("Cancel", lambda: dialog.submit(False)).props("autofocus")
            make_button(action, lambda: dialog.submit(True), "danger primary")
    set_attributes(dialog, aria_label=question)
    is_wanted = bool(await dialog)
    dialog.delete()
    return is_wanted


def describe_old_model(max_versions: int) -> str:
    """Say what becomes of a model whose place another takes, as the end of a sentence.

    :param max_versions: Versions kept of each model, the newest included.
    """
    if max_versions == 1:
        return "is deleted for good, unless an alias keeps it"
    return "stays as a version while there is room for it"
