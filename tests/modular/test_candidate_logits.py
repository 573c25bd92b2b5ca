"""What candidates answer: run once, no sooner than asked for, and known as long as they live on."""

from __future__ import annotations

import torch

from deeppatch.modular.candidate_logits import CandidateLogits

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 2])
KEYS = [[b"a", b"b", b"a"], [b"c", b"d", b"e"], [b"a", b"f", b"g"]]


class Counting:
    """Evaluates candidates as their first mask's sums plus the class, and notes what is run."""

    def __init__(self):
        self.calls = []
        self.answers = CandidateLogits(self, LABELS, 3)
        self.answers.set_population(KEYS, self.masks(KEYS))

    @staticmethod
    def masks(keys):
        return [[torch.tensor([[float(key[0])] for key in own])] for own in keys]

    def __call__(self, number, masks, samples):
        self.calls.append((number, masks[0].flatten().tolist(), samples.nonzero().flatten().tolist()))
        return masks[0] + number + samples.nonzero().T / 10


def test_candidates_run_on_the_samples_of_the_classes_asked_for_and_no_others():
    counting = Counting()
    answers = counting.answers
    assert answers.logits.isnan().all()
    answers.compute(1, torch.tensor([0, 2]), (1, 0))
    assert counting.calls == [(1, [ord("c"), ord("e")], [0, 1, 3, 4])]
    assert answers.logits[1, 2, [0, 1, 3, 4]].tolist() == torch.tensor([102, 102.1, 102.3, 102.4]).tolist()
    assert int((~answers.logits.isnan()).sum()) == 8 == answers.passes
    answers.compute(1, torch.tensor([0, 1]), (2, 1))
    assert counting.calls[1:] == [(1, [ord("c")], [2, 5, 6]), (1, [ord("d")], [1, 2, 4, 5, 6])]
    answers.compute(1, torch.tensor([0]), range(3))
    assert len(counting.calls) == 3, "all is known"


def test_equal_chromosomes_of_a_class_run_as_one_and_those_of_another_class_do_not():
    counting = Counting()
    counting.answers.compute(0, torch.tensor([0, 1, 2]), (0,))
    assert counting.calls == [(0, [ord("a"), ord("b")], [0, 3])]
    assert torch.equal(counting.answers.logits[0, 0, [0, 3]], counting.answers.logits[0, 2, [0, 3]])
    counting.answers.compute(0, torch.tensor([2]), (0, 1))
    assert counting.calls[1:] == [(0, [ord("a")], [1, 4])]
    counting.answers.compute(2, torch.tensor([0]), (0,))
    assert counting.calls[2:] == [(2, [ord("a")], [0, 3])]


def test_what_lives_on_keeps_its_answers_and_what_dies_is_forgotten():
    counting = Counting()
    counting.answers.compute(0, torch.tensor([0, 1]), (0, 1, 2))
    before = counting.answers.logits[0].clone()
    later = [[b"x", b"a", b"x"], KEYS[1], KEYS[2]]
    assert counting.answers.set_population(later, counting.masks(later)) == 1
    assert torch.equal(counting.answers.logits[0, 1], before[0])
    assert counting.answers.logits[0, [0, 2]].isnan().all()
    assert counting.answers.set_population(KEYS, counting.masks(KEYS)) == 1, "b was forgotten"


def test_loaded_answers_go_on_as_if_no_time_had_passed():
    counting, other = Counting(), Counting()
    counting.answers.compute(2, torch.tensor([0, 1, 2]), (0, 2))
    fresh = CandidateLogits(other, LABELS, 3)
    fresh.load(counting.answers.state())
    assert fresh.set_population(KEYS, other.masks(KEYS)) == 0
    fresh.compute(2, torch.tensor([0, 2]), range(3))
    assert other.calls == [(2, [ord("a"), ord("g")], [1, 4])]
    counting.answers.compute(2, torch.tensor([0, 2]), range(3))
    assert torch.equal(fresh.logits.nan_to_num(-1), counting.answers.logits.nan_to_num(-1))
