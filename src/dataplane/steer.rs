//! Pure: the program by which the kernel gives each packet of a data channel to its lane's socket.
//!
//! A node has a socket for each lane and one for all else. What overflows is what a lane's own pairs
//! sent, and handshakes wait behind no data.

use crate::dataplane::shard::owner_of_lane;
use crate::os::udp::Instruction;
use crate::policy::Pair;
use crate::wire::a2g;

/// First bytes of a packet of a data channel, and of a frame (protocol.md section 4).
const CHANNEL: u32 = 0x20;
const FRAME: u32 = 0xa2;

/// Where in a packet of a data channel the low byte of its id is (protocol.md section 7).
const LANE_AT: u32 = 7;

/// Where in a frame its payload begins.
const PAYLOAD_AT: u32 = a2g::HEADER as u32;

/// Codes of the instructions (linux/bpf_common.h).
const LOAD_BYTE: u16 = 0x30;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const AND: u16 = 0x54;
const ADD: u16 = 0x04;
const RETURN: u16 = 0x06;
const RETURN_LOADED: u16 = 0x16;

/// Sockets of one node: the first for what is of no data channel, then one for each lane.
pub const SOCKETS: usize = 1 + Pair::LANES as usize;

/// Returns which of `workers` workers has the socket of this number.
pub(super) fn worker_of(socket: usize, workers: usize) -> usize {
    let lane = socket
        .checked_sub(1)
        .and_then(|lane| u8::try_from(lane).ok());
    lane.map_or(0, |lane| owner_of_lane(lane, workers))
}

/// Returns what chooses among a node's sockets: by the low bits of the channel's id, in a frame or
/// not, and the first one for everything else. What is too short to read is the first one's too.
pub(super) fn program() -> [Instruction; 12] {
    let plain = |code, operand| Instruction {
        code,
        jump: (0, 0),
        operand,
    };
    let if_equal = |operand, jump| Instruction {
        code: JUMP_IF_EQUAL,
        jump,
        operand,
    };
    [
        plain(LOAD_BYTE, 0),
        if_equal(CHANNEL, (5, 0)), // to 7
        if_equal(FRAME, (0, 8)),   // else to 11
        plain(LOAD_BYTE, PAYLOAD_AT),
        if_equal(CHANNEL, (0, 6)), // else to 11
        plain(LOAD_BYTE, PAYLOAD_AT + LANE_AT),
        plain(JUMP, 1), // to 8
        plain(LOAD_BYTE, LANE_AT),
        plain(AND, u32::from(Pair::LANES - 1)),
        plain(ADD, 1),
        plain(RETURN_LOADED, 0),
        plain(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::shard::MAX_WORKERS;
    use crate::os::clock;
    use crate::os::udp::{UdpPort, bind, bind_shared};
    use crate::wire::channel::header;
    use std::{net::SocketAddr, time::Duration};

    /// Returns which of the sockets got something.
    fn receiver(sockets: &[UdpPort]) -> usize {
        let end = clock::now() + Duration::from_secs(20);
        let mut buffer = [0; 200];
        loop {
            let got = |socket: &UdpPort| socket.recv_from(&mut buffer).is_ok();
            if let Some(index) = sockets.iter().position(got) {
                return index;
            }
            assert!(clock::now() < end, "nothing arrived");
            std::thread::yield_now();
        }
    }

    #[test]
    fn packets_of_a_channel_go_to_its_lane_and_all_else_to_the_first() {
        let sender = bind(0).unwrap();
        let sockets = bind_shared(0, SOCKETS).unwrap();
        let port = sockets[0].port().unwrap();
        sockets[0].choose_by(&program()).unwrap();
        for to in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(to.parse().unwrap(), port);
            for id in [0, 1, 2, 3, 5, 6, 7, 0x0a0b_0c0d, u32::MAX] {
                let packet = header(id, 9);
                let mut frame = vec![0xa2; a2g::HEADER];
                frame.extend(packet);
                let lane = 1 + (id as usize & 15);
                for (datagram, expected) in [
                    (&packet[..], lane),
                    (&frame, lane),
                    (&[4, 0, 0, 0, 9, 9, 9, 1], 0),
                    (&frame[..a2g::HEADER], 0),
                    (&frame[..a2g::HEADER + 7], 0),
                    (&packet[..7], 0),
                    (&[], 0),
                ] {
                    sender.send_to(datagram, to).unwrap();
                    assert_eq!(receiver(&sockets), expected, "{id:x} {datagram:x?}");
                }
            }
        }
    }

    /// Issue 4: what one lane's pairs send beyond what is read is lost to nobody else.
    #[test]
    fn what_overflows_is_of_one_lane() {
        let sender = bind(0).unwrap();
        let sockets = bind_shared(0, SOCKETS).unwrap();
        sockets[0].choose_by(&program()).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], sockets[0].port().unwrap()));
        let flood = [&header(3, 0)[..], &[0; 1400]].concat();
        for _ in 0..20_000 {
            sender.send_to(&flood, to).unwrap();
        }

        for (datagram, socket) in [(&header(4, 0)[..], 5), (&[1, 0, 0, 0, 9, 9, 9, 9], 0)] {
            sender.send_to(datagram, to).unwrap();
            assert_eq!(receiver(&sockets[socket..=socket]), 0);
        }
        let mut buffer = [0; 2000];
        let kept = (0..).take_while(|_| sockets[4].recv_from(&mut buffer).is_ok());
        assert!(kept.count() < 20_000, "nothing overflowed");
    }

    /// Each worker has a socket, whose lane's pairs are its own.
    #[test]
    fn sockets_are_of_their_lanes_owners() {
        for workers in 1..=MAX_WORKERS {
            let mut has = vec![0; workers];
            for socket in 0..SOCKETS {
                has[worker_of(socket, workers)] += 1;
            }
            assert!(has.iter().all(|n| *n >= 2), "{workers}: {has:?}");
            assert_eq!(worker_of(0, workers), 0);
            for lane in 0..Pair::LANES {
                let socket = 1 + usize::from(lane);
                assert_eq!(worker_of(socket, workers), owner_of_lane(lane, workers));
            }
        }
    }
}
