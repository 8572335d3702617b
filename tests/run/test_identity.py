"""Which settings make two configs the same run."""

from svt_jax.run.config import DataConfig, TrainConfig, identity


def test_a_config_of_an_earlier_version_is_that_of_padded_batches():
    values = TrainConfig(data=DataConfig(layout="padded")).to_dict()
    expected = identity(values)
    for key in ("layout", "row_length", "rows", "groups"):
        del values["data"][key]
    assert identity(values) == expected != identity(TrainConfig().to_dict())
    assert "data.buckets" not in identity(TrainConfig().to_dict())
