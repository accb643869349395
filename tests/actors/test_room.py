"""Who gets the next call: as if all members were gone through, without going through them."""

import random

from actors.room import Item, Member, Room


def test_the_member_with_fewest_calls_is_found_whatever_happened_before() -> None:
    chance = random.Random(3)
    members = [Member(index, None) for index in range(7)]
    room = Room(members, in_flight=3)
    for number in range(3000):
        if chance.random() < 0.5:
            open_ones = [
                m for m in members if len(m.pending) < 3 and not any(i.deaths for i in m.pending.values())
            ]
            wanted = min(open_ones, key=lambda m: (len(m.pending), m.index), default=None)
            found = room.freest()
            assert found is wanted
            if found is not None:
                suspect = chance.random() < 0.1
                if not suspect or not found.pending:
                    found.pending[number] = Item(str(number), (), deaths=int(suspect))
                room.offer(found)
        elif chance.random() < 0.05:
            members[2] = Member(2, None)  # the successor of a dead one
            room.offer(members[2])
        else:
            busy = [m for m in members if m.pending]
            if busy:
                member = chance.choice(busy)
                member.pending.pop(chance.choice(list(member.pending)))
                room.offer(member)


def test_a_call_costs_the_same_among_many_members() -> None:
    def looked(count: int) -> float:
        members = [Member(index, None) for index in range(count)]
        room = Room(members, in_flight=2)
        for number in range(4 * count):
            member = room.freest()
            if member is None:
                for busy in members:
                    busy.pending.clear()
                    room.offer(busy)
                member = room.freest()
            assert member is not None
            member.pending[number] = Item(str(number), ())
            room.offer(member)
        return room.looked / (4 * count)

    assert looked(2000) < 2 * looked(20) < 10
