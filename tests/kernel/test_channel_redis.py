"""The channel on Redis: the conformance suite, on one server and on a cluster of three."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from couponflow.kernel.channel import Channel
from couponflow.messages import Click
from tests.kernel.channel_conformance import ChannelConformance, ChannelFactory
from tests.kernel.redis_channels import click_channel, opened_redis


class TestRedisChannel(ChannelConformance):
    @pytest.fixture
    def make_channel(self, redis_url: str) -> ChannelFactory:
        @asynccontextmanager
        async def open_channel(capacity: int) -> AsyncGenerator[Channel[Click], None]:
            async with opened_redis(redis_url) as redis, click_channel(redis, capacity) as channel:
                yield channel

        return open_channel


class TestRedisClusterChannel(ChannelConformance):
    @pytest.fixture
    def make_channel(self, redis_cluster_url: str) -> ChannelFactory:
        @asynccontextmanager
        async def open_channel(capacity: int) -> AsyncGenerator[Channel[Click], None]:
            async with (
                opened_redis(redis_cluster_url, cluster=True) as redis,
                click_channel(redis, capacity) as channel,
            ):
                yield channel

        return open_channel
