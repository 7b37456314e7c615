//! What a data plane takes directly.

use std::{net::UdpSocket, time::Duration};

use agentnet::{
    engine::{
        ChannelEvent,
        channel::{ChannelChange, End, Ends, NewChannel, Schedule},
    },
    id::{IdentityKey, TunnelSecret},
    policy::Pair,
    wire::{
        channel::{Offer, Suite, Suites, Terms},
        drop::DropReason,
    },
};
use tokio::time::timeout;

use super::{Node, ip, on};
use crate::world::{PATIENCE, in_world};

/// P-075: who hides does not even try to open what comes directly, though it knows the channel.
#[test]
fn who_hides_opens_nothing_that_comes_directly() {
    in_world(|world| {
        on(&world.host("a"), async || {
            let mut node = Node::start(Some("any")).await;
            let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
            plain.set_read_timeout(Some(PATIENCE)).unwrap();
            let address = plain.local_addr().unwrap();
            node.handle.send(vec![(address, vec![1])]);
            let (_, at) = plain.recv_from(&mut [0; 9]).unwrap();
            node.handle.change_channel(channel());
            let mut packet = [0; 60];
            (packet[0], packet[7]) = (0x20, PAIR().lane());

            for (is_hidden, reason) in [
                (false, DropReason::ChannelInvalid),
                (true, DropReason::ChannelUnknown),
            ] {
                node.is_hidden = is_hidden;
                node.publish(Some("any")).await;
                plain.send_to(&packet, at).unwrap();
                let counted = async {
                    while node.dropped(reason).await < 1 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(PATIENCE, counted).await.unwrap();
            }

            assert_eq!(node.dropped(DropReason::ChannelInvalid).await, 1);
        });
    });
}

const PAIR: fn() -> Pair = || Pair {
    local: ip(1),
    peer: ip(2),
};

/// Makes a channel of agent 1, whose id is the pair's lane and nothing else.
fn channel() -> ChannelEvent {
    let secret = TunnelSecret::from_seed([1; 32]);
    let ephemeral = *secret.public().as_bytes();
    let end = |n| End {
        identity: IdentityKey::from_seed([n; 32]).did().into(),
        tunnel: TunnelSecret::from_seed([n; 32]).public(),
    };
    let network = IdentityKey::from_seed([3; 32]).did().into();
    let (id, remote, suite) = (PAIR().lane().into(), 8, Suite::Aes256Gcm);
    let offer = Offer {
        low: id,
        suites: Suites::of(&[suite]),
        ephemeral,
    };
    let terms = Terms {
        low: id,
        high: remote,
        suite,
        ephemeral,
    };
    let ends = Ends::new(network, end(1), end(2));
    let keys = Schedule::derive(&secret, &ephemeral, &ends, &offer, &terms).unwrap();
    ChannelEvent {
        local: ip(1),
        peer: ip(2),
        change: ChannelChange::New(NewChannel {
            id,
            remote,
            suite,
            seal: keys.low_to_high,
            open: keys.high_to_low,
        }),
    }
}
