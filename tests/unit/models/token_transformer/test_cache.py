import pytest

from cosmos_nemo.models.token_transformer.cache import BUCKET, bucket_for


@pytest.mark.parametrize(
    ("position", "bucket"),
    [(0, 1024), (1023, 1024), (1024, 2048), (5119, 5120), (5120, 6144), (12288, 12800), (12799, 12800)],
)
def test_a_bucket_holds_the_position_and_is_the_least_that_does(position: int, bucket: int) -> None:
    assert bucket_for(position, max_length=12800) == bucket


def test_buckets_are_few_and_end_with_the_cache() -> None:
    for length in (12800, 12864):
        buckets = {bucket_for(position, max_length=length) for position in range(length)}
        assert len(buckets) == 13 and max(buckets) == length
    assert bucket_for(5, max_length=24) == 24 < BUCKET
