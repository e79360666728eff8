import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from inferaligner.steering.generate_wrapper import GenerateAnnouncer


class Model:
    def generate(self, inputs: Any = None, *, limit: int = 0, **kwargs: Any) -> Any:
        """The model's own."""
        if kwargs.get("fail"):
            raise ZeroDivisionError
        return inputs, limit, kwargs


class Log:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    @contextmanager
    def around(self, arguments: dict[str, Any]) -> Iterator[None]:
        self.calls.append(arguments)
        try:
            yield
        finally:
            self.calls.append("left")


def test_arguments_by_name_whichever_way_they_came() -> None:
    model, log = Model(), Log()
    GenerateAnnouncer(model, log.around)
    assert model.generate([1], limit=3, mask=[0]) == ([1], 3, {"mask": [0]})
    announced = log.calls[0]
    assert (announced["inputs"], announced["limit"], announced["mask"]) == ([1], 3, [0])
    assert model.generate.__doc__ == "The model's own."
    with pytest.raises(ZeroDivisionError):
        model.generate(fail=True)
    assert log.calls[-1] == "left"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)])
def test_lifted_in_any_order(order: tuple[int, ...]) -> None:
    model = Model()
    logs = [Log(), Log(), Log()]
    announcers = [GenerateAnnouncer(model, log.around) for log in logs]
    active = {0, 1, 2}
    for number in order:
        announcers[number].lift()
        active.remove(number)
        for log in logs:
            log.calls.clear()
        assert model.generate([7]) == ([7], 0, {})
        assert {at for at, log in enumerate(logs) if log.calls} == active
    assert "generate" not in model.__dict__


def test_what_others_put_there_stays() -> None:
    model = Model()
    model.generate = own = functools.partial(Model.generate, model)  # type: ignore[method-assign]
    announcer = GenerateAnnouncer(model, Log().around)
    announcer.lift()
    assert model.generate is own

    first = GenerateAnnouncer(model, Log().around)
    ours = model.generate

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    model.generate = theirs  # type: ignore[method-assign]
    first.lift()
    assert model.generate is theirs
    assert model.generate([1]) == ([1], 0, {})
