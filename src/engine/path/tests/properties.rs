use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Input {
    Candidates(u64, Vec<u8>),
    Data(u8),
    Heard(u8, bool),
    Local(Vec<u8>),
    Mode(u8),
    NetworkChange,
    NoSession,
    Open(u8, u64),
    Close(u8),
    Relay(bool),
    Session,
    Pass(u64),
    Reply(u8, u64, u32),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let few = || prop::collection::vec(any::<u8>(), 0..20);
    let one = prop_oneof![
        (0..50_u64, few()).prop_map(|(seq, list)| Input::Candidates(seq, list)),
        (0..30_u8).prop_map(Input::Data),
        (any::<u8>(), any::<bool>()).prop_map(|(n, is_data)| Input::Heard(n, is_data)),
        few().prop_map(Input::Local),
        (0..8_u8).prop_map(Input::Mode),
        Just(Input::NetworkChange),
        Just(Input::NoSession),
        (any::<u8>(), 0..2000_u64).prop_map(|(n, rtt)| Input::Open(n, rtt)),
        any::<u8>().prop_map(Input::Close),
        any::<bool>().prop_map(Input::Relay),
        Just(Input::Session),
        Just(Input::Session),
        (0..20_000_u64).prop_map(Input::Pass),
        (any::<u8>(), any::<u64>(), any::<u32>()).prop_map(|(n, id, r)| Input::Reply(n, id, r)),
    ];
    prop::collection::vec(one, 1..60)
}

/// A handful of endpoints of all kinds, useless ones among them.
fn endpoint(n: u8) -> SocketAddr {
    match n % 8 {
        0 => SocketAddr::new([127, 0, 0, 1].into(), u16::from(n)),
        1 => at("[fd00::1]:9"),
        2 => SocketAddr::new([192, 168, 1, n].into(), 16200),
        3 => SocketAddr::new([10, 0, n % 3, 1].into(), 16200),
        4 => SocketAddr::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into(), 16200),
        _ => SocketAddr::new([198, 51, 100, n].into(), u16::from(n % 2)),
    }
}

fn candidates(list: &[u8]) -> Vec<Candidate> {
    let list = list.iter().map(|n| Candidate {
        kind: Kind::Reflexive,
        endpoint: endpoint(*n),
        priority: u32::from(*n),
    });
    list.collect()
}

impl World {
    fn take(&mut self, input: Input) {
        let now = self.now;
        match input {
            Input::Candidates(seq, list) => {
                let list = candidates(&list);
                self.agent.handle_candidates(&Candidates { seq, list }, now);
            }
            Input::Data(n) => {
                for _ in 0..n {
                    self.data();
                    self.pass(ms(100));
                }
            }
            Input::Heard(n, is_data) => {
                let path = Path::Direct(endpoint(n));
                self.agent.handle_authenticated(path, is_data, now);
            }
            Input::Local(list) => self.agent.set_candidates(&candidates(&list), now),
            Input::Mode(n) => {
                let mode = match n {
                    0 => Mode::Hidden,
                    1 => Mode::Relay,
                    2 => Mode::Direct,
                    _ => Mode::Auto,
                };
                self.agent.set_mode(mode, now);
            }
            Input::NetworkChange => self.agent.handle_network_change(now),
            Input::NoSession => self.agent.handle_no_session(),
            Input::Open(n, rtt) => {
                self.rtt.insert(Path::Direct(endpoint(n)), ms(rtt));
                self.carries.insert(Path::Direct(endpoint(n)));
            }
            Input::Close(n) => self.close(Path::Direct(endpoint(n))),
            Input::Relay(has) => self.agent.set_relay(has, now),
            Input::Session => self.agent.handle_session(now),
            Input::Pass(span) => self.pass(ms(span)),
            Input::Reply(n, id, received) => {
                let path = Path::Direct(endpoint(n));
                let reply = ProbeReply {
                    received,
                    ..self.reply(id)
                };
                self.agent.handle_reply(path, &reply, now);
            }
        }
        self.drain();
    }
}

proptest! {
    /// No input leads to a path in use that never answered, to more than 20 probes in any second,
    /// to more than 24 endpoints, or to a deadline that does not move.
    #[test]
    fn bounds_hold_under_any_input(inputs in inputs()) {
        let mut world = World::new(Mode::Auto);
        let mut answered = BTreeSet::new();
        for input in inputs {
            world.take(input);

            for (_, path) in &world.sent {
                if world.rtt.contains_key(path) {
                    answered.insert(*path);
                }
            }
            let view = world.agent.view(world.now);
            prop_assert!(view.pairs.len() <= 25, "{}", view.pairs.len());
            if let Some(path @ Path::Direct(endpoint)) = view.current {
                prop_assert!(answered.contains(&path), "{endpoint} never answered");
                prop_assert!(view.mode.seeks());
            }
            prop_assert!(view.mode != Mode::Direct || view.current != Some(Path::Relay));
            if view.mode.seeks() && view.mode == Mode::Auto {
                prop_assert!(view.current.is_some());
            }
        }
        for window in world.sent.windows(21) {
            prop_assert!(window[20].0 - window[0].0 >= secs(1));
        }
    }

    /// Whatever a peer claims, endpoints that never answer get five probes each.
    #[test]
    fn strangers_get_five_probes_however_often_they_are_named(
        lists in prop::collection::vec(prop::collection::vec(0..40_u8, 0..16), 1..30),
        pauses in prop::collection::vec(0..4000_u64, 30),
    ) {
        let mut world = World::up(&[]);
        for (n, (list, pause)) in lists.iter().zip(pauses).enumerate() {
            let named = Candidates { seq: n as u64 + 2, list: candidates(list) };
            world.agent.handle_candidates(&named, world.now);
            world.talk(ms(pause));
        }
        world.talk(secs(10));

        for n in 0..40 {
            let probes = world.probes_to(Path::Direct(endpoint(n)));
            prop_assert!(probes <= 5, "{} got {probes}", endpoint(n));
        }
    }
}
