"""Task batches from the host: drawn ahead on a thread, several in one program, and found again by the iterator's own state."""

import numpy as np
import pytest
from helpers import Stop, stop_at

import adaptax as ax
from adaptax.training import stream


class Counting:
    """An iterator over batches with a state, which counts what it draws."""

    def __init__(self, batches, form=lambda n: {"next": n}, back=lambda state: state["next"]):
        self.batches, self.form, self.back = batches, form, back
        self.next = self.drawn = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.next == len(self.batches):
            raise StopIteration
        self.next, self.drawn = self.next + 1, self.drawn + 1
        return self.batches[self.next - 1]

    def get_state(self):
        return self.form(self.next)

    def set_state(self, state):
        self.next = self.back(state)


FORMS = {
    "json": (lambda n: {"next": n}, lambda state: state["next"]),
    "bytes": (lambda n: bytes([n]), lambda state: state[0]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_run_killed_ten_times_goes_on_bit_for_bit_without_drawing_again(tiny, tmp_path, form):
    batches, options = tiny.batches(30), {"out": tmp_path / "run", "checkpoint_every": 2, "steps": 30}
    whole = tiny.train(tiny.edge, tasks=batches, steps=30)
    for stop in range(3, 30, 3)[:10]:
        source = Counting(batches, *FORMS[form])
        with pytest.raises(Stop):
            tiny.train(tiny.edge, **options, tasks=source, resume=stop > 3, callback=stop_at(stop))
    source = Counting(batches, *FORMS[form])
    resumed = tiny.train(tiny.edge, **options, tasks=source, resume=True)
    assert tiny.same(whole[0], resumed[0]) and tiny.same_history(whole[1], resumed[1])
    # One to look at, and those that were left.
    assert source.drawn <= 1 + 30 - 26


def test_an_iterator_of_grain(tiny, tmp_path):
    grain = pytest.importorskip("grain")
    batches = tiny.batches(40)

    def source():
        return iter(grain.MapDataset.source(batches).seed(3).shuffle().repeat().to_iter_dataset())

    whole = tiny.train(tiny.edge, tasks=source(), steps=20)
    options = {"out": tmp_path / "run", "checkpoint_every": 3, "steps": 20}
    for resume, stop in ((False, 7), (True, 14)):
        with pytest.raises(Stop):
            tiny.train(tiny.edge, **options, tasks=source(), resume=resume, callback=stop_at(stop))
    resumed = tiny.train(tiny.edge, **options, tasks=source(), resume=True)
    assert tiny.same(whole[0], resumed[0]) and tiny.same_history(whole[1], resumed[1])


def test_an_iterator_with_a_state_takes_the_place_of_one_without(tiny, tmp_path):
    batches, options = tiny.batches(12), {"out": tmp_path / "run", "checkpoint_every": 4}
    with pytest.raises(Stop):
        tiny.train(tiny.edge, **options, tasks=batches, callback=stop_at(6))
    source = Counting(batches)
    resumed = tiny.train(tiny.edge, **options, tasks=source, resume=True)
    assert tiny.same(tiny.train(tiny.edge, tasks=batches)[0], resumed[0])
    assert source.drawn == 12


def test_several_batches_are_one_program_with_the_result_of_one_at_a_time(tiny, monkeypatch):
    batches = tiny.batches(12)
    many = tiny.train(tiny.edge, tasks=batches)
    lengths = []
    tiny.train(tiny.edge, tasks=batches, callback=lambda state, record: lengths.append(len(record["loss"])))
    assert max(lengths) > 1 and sum(lengths) == 12
    monkeypatch.setattr(stream, "_BYTES", 1)
    one = tiny.train(tiny.edge, tasks=batches)
    np.testing.assert_allclose(many[1]["loss"], one[1]["loss"], rtol=1e-5)


def test_no_more_batches_are_drawn_than_the_run_takes(tiny):
    source = Counting(tiny.batches(40))
    tiny.train(tiny.edge, tasks=source, steps=9)
    assert source.drawn == 9


def test_a_failing_iterator_is_heard_and_a_state_that_cannot_be_saved_is_refused(tiny, tmp_path):
    def failing():
        yield from tiny.batches(3)
        raise ZeroDivisionError("in the pipeline")

    with pytest.raises(ZeroDivisionError, match="in the pipeline"):
        tiny.train(tiny.edge, tasks=failing())
    with pytest.raises(ax.InputError, match="let it return bytes"):
        tiny.train(tiny.edge, tasks=Counting(tiny.batches(12), form=lambda n: {"next": object()}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
