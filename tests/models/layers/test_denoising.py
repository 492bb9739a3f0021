from deim_mmdet.models.layers.denoising import DenoisingQueryGenerator
from deim_mmdet.models.task_modules import Targets

import torch


def make(counts=(3, 0, 5), num_queries=100, **kwargs):
    torch.manual_seed(0)
    generator = DenoisingQueryGenerator(10, 8, num_queries=num_queries, **kwargs)
    labels = [torch.randint(10, (n,)) for n in counts]
    boxes = [torch.rand(n, 4) * 0.3 + 0.3 for n in counts]
    return generator, labels, boxes, generator(Targets.from_lists(labels, boxes))


def grouped(queries):
    """Boxes (B, G, positive or negative, m, 4)."""
    logits = queries.reference_logits[:, : queries.num_real]
    return logits.sigmoid().view(len(logits), queries.num_groups, 2, -1, 4)


def test_shapes_and_number_of_groups():
    _, _, _, queries = make()
    assert (queries.num_groups, queries.num_real) == (100 // 5, 20 * 2 * 5)
    assert queries.content.shape == (3, 20 * 2 * 5, 8)
    assert make(counts=(150, 1))[3].num_groups == 1


def test_no_object_no_queries():
    assert make(counts=(0, 0))[3] is None


def test_noise_of_positives_and_negatives():
    """Sides of positives move by less than half the size, those of negatives by 1 to 2 halves.

    Where noise swaps two opposite sides, the box is that between them.
    """
    _, _, boxes, queries = make()
    noised = grouped(queries)[2]
    size = boxes[2][:, 2:]
    low, high = boxes[2][:, :2] - size / 2, boxes[2][:, :2] + size / 2
    new_low = noised[..., :2] - noised[..., 2:] / 2
    new_high = noised[..., :2] + noised[..., 2:] / 2
    inside = (new_low > 0.001) & (new_high < 0.999)

    def fits(first, second, least, most):
        moves = torch.stack([(first - low).abs(), (second - high).abs()]) / (size / 2)
        return ((moves >= least - 1e-3) & (moves <= most + 1e-3)).all(0)

    for kind, least, most in ((0, 0, 1), (1, 1, 2)):
        direct = fits(new_low[:, kind], new_high[:, kind], least, most)
        swapped = fits(new_high[:, kind], new_low[:, kind], least, most)
        assert (direct | swapped)[inside[:, kind]].all()
        assert inside[:, kind].sum() > 50
    assert (noised[..., 2:] > 0).all()


def test_share_of_flipped_labels():
    """A quarter of the labels is drawn anew, a tenth of which hits the old one."""
    generator, labels, boxes, _ = make(counts=(50, 50), num_queries=5000)
    real = torch.stack(labels)[:, None, None].expand(-1, 100, 2, -1)
    box = torch.stack(boxes)[:, None, None].expand(-1, 100, 2, -1, -1)
    noised, _ = generator._noised(real, box, torch.ones_like(real, dtype=torch.bool))
    share = (noised != real).float().mean().item()
    assert abs(share - 0.25 * 0.9) < 0.01


def test_padding_uses_the_padding_class():
    generator, _, _, queries = make()
    content = queries.content.view(3, 20, 2, 5, 8)
    assert (content[1] == generator.embedding.weight[10]).all()
    assert (content[0, :, :, 3:] == generator.embedding.weight[10]).all()


def test_attention_mask_against_the_rule():
    _, _, _, queries = make()
    num_queries, size = 7, 10
    mask = queries.attention_mask(num_queries)
    count = 20 * size
    for i in range(0, count + num_queries, 3):
        for j in range(count + num_queries):
            i_denoises, j_denoises = i < count, j < count
            same_group = i_denoises and j_denoises and i // size == j // size
            assert mask[i, j].item() == (j_denoises and not same_group)
