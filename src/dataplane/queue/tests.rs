use super::*;
use crate::dataplane::testing;
use nix::sys::eventfd::EfdFlags;
use std::task::Waker;

fn lanes(count: usize) -> (DataplaneHandle, Vec<Commands>) {
    let wake = |_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    channel((0..count).map(wake).collect())
}

fn lane() -> (DataplaneHandle, Commands) {
    let (handle, mut ends) = lanes(1);
    (handle, ends.remove(0))
}

fn datagrams(n: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    vec![("127.0.0.1:9".parse().unwrap(), vec![0]); n]
}

fn poll(published: &mut Published) -> Poll<io::Result<()>> {
    Pin::new(published).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn packets_beyond_the_bound_are_dropped_but_state_changes_are_not() {
    let (handle, commands) = lane();

    handle.send(datagrams(MAX_QUEUED));
    handle.send(datagrams(2));
    let _published = handle.publish(Tables::default());

    let shared = &handle.0.lanes[0].shared.0;
    assert_eq!(shared.overflown.load(Ordering::Relaxed), 2);
    assert!(matches!(commands.next(), Some(Command::Send(d)) if d.len() == MAX_QUEUED));
    assert!(matches!(commands.next(), Some(Command::Publish { .. })));
    assert!(commands.next().is_none());
    handle.send(datagrams(1));
    assert!(matches!(commands.next(), Some(Command::Send(_))));
}

#[test]
fn a_dropped_handle_ends_the_worker_and_an_ended_worker_is_told() {
    let (handle, commands) = lane();
    drop(handle);
    assert!(matches!(commands.next(), Some(Command::Shutdown)));

    let (handle, commands) = lane();
    drop(commands);
    let mut published = handle.publish(Tables::default());
    assert!(matches!(poll(&mut published), Poll::Ready(Err(_))));
}

/// P-015: nothing is over before every worker says so.
#[test]
fn a_publication_is_in_force_when_all_workers_have_it() {
    let (handle, ends) = lanes(3);
    let mut published = handle.publish(Tables::default());
    for commands in &ends {
        assert!(poll(&mut published).is_pending());
        let Some(Command::Publish { number, done, .. }) = commands.next() else {
            panic!("not a publication");
        };
        assert_eq!(number, 1);
        done.send(()).unwrap();
    }
    assert!(matches!(poll(&mut published), Poll::Ready(Ok(()))));
}

#[test]
fn packets_go_to_their_owner_in_order() {
    let (handle, ends) = lanes(3);
    let packet = |n: u16| InPacket {
        local: testing::pair(n).local,
        peer: testing::pair(n).peer,
        bytes: Vec::new(),
    };

    handle.deliver((2..40).map(packet).collect());

    let mut seen = 0;
    for (index, commands) in ends.iter().enumerate() {
        let Some(Command::Deliver(packets)) = commands.next() else {
            panic!("each has some");
        };
        assert!(packets.is_sorted_by_key(|packet| packet.peer));
        for InPacket { local, peer, .. } in &packets {
            let pair = Pair {
                local: *local,
                peer: *peer,
            };
            assert_eq!(owner(&pair, 3), index);
        }
        seen += packets.len();
    }
    assert_eq!(seen, 38);
}

/// Half a data plane is worse than none.
#[test]
fn a_worker_that_fails_takes_the_others_with_it() {
    let (handle, mut ends) = lanes(2);
    handle.send(datagrams(1));

    drop(ends.pop());

    assert!(ends[0].wake().read().is_ok());
    assert!(matches!(ends[0].next(), Some(Command::Shutdown)));
    // One that was told to end does not.
    let (handle, mut ends) = lanes(2);
    handle.shutdown();
    let last = ends.pop().unwrap();
    assert!(matches!(last.next(), Some(Command::Shutdown)));
    drop(last);
    assert!(matches!(ends[0].next(), Some(Command::Shutdown)));
    assert!(ends[0].next().is_none());
}

/// Who has no queue of its own writes to another's and reads none.
#[test]
fn each_worker_has_its_part_of_a_device() {
    for (queues, workers, read) in [(1, 1, 1), (2, 2, 2), (1, 3, 1), (2, 5, 2), (3, 2, 2)] {
        let fd = |_| OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let device = Device {
            fds: (0..queues).map(fd).collect(),
            has_header: true,
            has_udp_offload: true,
        };

        let parts = device.share(workers).unwrap();

        assert_eq!(parts.len(), workers);
        let (first, last) = parts.split_at(read);
        assert!(first.iter().all(|queue| queue.is_read));
        assert!(last.iter().all(|queue| !queue.is_read));
    }
    let nothing = Device {
        fds: Vec::new(),
        has_header: false,
        has_udp_offload: false,
    };
    assert!(nothing.share(2).is_err());
}
