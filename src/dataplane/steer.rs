//! Pure: the program by which the kernel gives each packet of a data channel to its owner's socket.

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
const MODULO: u16 = 0x94;
const RETURN: u16 = 0x06;
const RETURN_LOADED: u16 = 0x16;

/// Returns what chooses among the sockets of `workers` workers: by the low bits of the channel's id,
/// in a frame or not, and the first one for everything else. What is too short to read is the
/// first one's too.
pub(super) fn program(workers: usize) -> [Instruction; 12] {
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
        plain(MODULO, u32::try_from(workers.max(1)).unwrap_or(1)),
        plain(RETURN_LOADED, 0),
        plain(RETURN, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn packets_of_a_channel_go_to_its_owner_and_all_else_to_the_first() {
        let sender = bind(0).unwrap();
        for workers in [2, 3, 8] {
            let sockets = bind_shared(0, workers).unwrap();
            let port = sockets[0].port().unwrap();
            sockets[0].choose_by(&program(workers)).unwrap();
            for to in ["127.0.0.1", "::1"] {
                let to = SocketAddr::new(to.parse().unwrap(), port);
                for id in [0, 1, 2, 3, 5, 6, 7, 0x0a0b_0c0d, u32::MAX] {
                    let packet = header(id, 9);
                    let mut frame = vec![0xa2; a2g::HEADER];
                    frame.extend(packet);
                    let owner = (id as usize & 7) % workers;
                    for (datagram, expected) in [
                        (&packet[..], owner),
                        (&frame, owner),
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
    }
}
