use std::fmt;

/// Declares the reasons once: variant, label and the list of all of them cannot disagree.
macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $label:literal,)*) => {
        /// Why a packet, frame or message was dropped; a counted value, never an error.
        #[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// Every reason, in alphabetical order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the name that metrics and `--json` carry; it never changes.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

// In alphabetical order; a new reason goes to its place.
drop_reasons! {
    /// A datagram for a connection that is gone, or whose queue was full.
    CarrierQueueFull => "carrier_queue_full",
    /// A data channel packet that does not open, or whose counter was seen before or is too old.
    ChannelInvalid => "channel_invalid",
    /// A message of a data channel's handshake that fits nothing, or does not prove itself.
    ChannelRefused => "channel_refused",
    /// A data channel packet or transport message to an index nobody here gave out.
    ChannelUnknown => "channel_unknown",
    /// A statement of a peer that sent more than it may, or a bad one before.
    ControlLimited => "control_limited",
    /// A control message, or a part of one, that does not parse.
    ControlMalformed => "control_malformed",
    /// A packet with a control next header (253, 254) between session and TUN.
    ControlInTun => "control_in_tun",
    /// A control message in parts that is too long or never became whole.
    ControlReassembly => "control_reassembly",
    /// A statement of a peer that does not hold.
    ControlRefused => "control_refused",
    /// A cookie reply from where no handshake was sent.
    CookieReply => "cookie_reply",
    /// A datagram too short or inconsistent for what its first bytes claim.
    DatagramMalformed => "datagram_malformed",
    /// A datagram whose first bytes are of no known kind.
    DatagramUnknown => "datagram_unknown",
    /// A GW-DISCOVER beyond the number that one source's are answered.
    DiscoverLimited => "discover_limited",
    /// A GW-DISCOVER that came before the registry gave the gateway a statement, or to one whose statement
    /// is longer than an answer may be.
    DiscoverUnready => "discover_unready",
    /// A packet marked congested on its way whose transport would not know what that means.
    EcnNotCapable => "ecn_not_capable",
    /// The engine's queue was full.
    EngineQueueFull => "engine_queue_full",
    /// A fragment whose first fragment has not passed, or that overlaps it.
    FilterFragment => "filter_fragment",
    /// An ICMPv6 message of a type the overlay does not carry.
    FilterIcmp => "filter_icmp",
    /// An ICMPv6 error about a packet this side did not send.
    FilterIcmpError => "filter_icmp_error",
    /// A segment or reply of no known flow.
    FilterNoFlow => "filter_no_flow",
    /// A next header that is neither TCP, UDP nor ICMPv6.
    FilterProtocol => "filter_protocol",
    /// A protocol and port (or echo request) outside the consented scope.
    FilterScope => "filter_scope",
    /// A frame to a hop id that is not attached here.
    FrameHopUnknown => "frame_hop_unknown",
    /// A frame shorter than its header, or of another version.
    FrameMalformed => "frame_malformed",
    /// A frame between agents of two networks.
    FrameNetwork => "frame_network",
    /// A frame beyond the sender's quota.
    FrameQuota => "frame_quota",
    /// A frame whose message id was seen before or left the window.
    FrameReplayed => "frame_replayed",
    /// A frame to a target that nobody is known by, beyond as many as an agent may send.
    FrameScan => "frame_scan",
    /// A frame whose source is not the attached agent's.
    FrameSource => "frame_source",
    /// A frame whose tag is wrong.
    FrameTag => "frame_tag",
    /// A frame whose target has no forwarding entry.
    FrameTarget => "frame_target",
    /// A frame that ran out of hops.
    FrameTtl => "frame_ttl",
    /// A handshake beyond the limit of its source.
    HandshakeLimited => "handshake_limited",
    /// A handshake that is not later than the last one of its key.
    HandshakeReplayed => "handshake_replayed",
    /// A handshake that no installed key opens, or of a peer not installed.
    HandshakeUnknown => "handshake_unknown",
    /// A loopback, unspecified, IPv4-mapped or otherwise foreign address.
    IpAddress => "ip_address",
    /// Extension headers that are malformed, misplaced, too many or redirect the packet.
    IpExtension => "ip_extension",
    /// A fragment that RFC 8200 section 4.5 or RFC 7112 forbids.
    IpFragment => "ip_fragment",
    /// A length field that differs from what arrived.
    IpLength => "ip_length",
    /// A link-local source or destination.
    IpLinkLocal => "ip_link_local",
    /// A multicast source or destination.
    IpMulticast => "ip_multicast",
    /// A transport header that is cut short or contradicts itself.
    IpTransport => "ip_transport",
    /// Not version 6.
    IpVersion => "ip_version",
    /// No gateway is attached to, so nothing reaches the peer now.
    NoPath => "no_path",
    /// A packet to or from an agent that is not an installed peer.
    NoPeer => "no_peer",
    /// A packet for which no session could be had in time.
    NoSession => "no_session",
    /// A packet longer than the path carries, whose sender was told.
    PacketTooBig => "packet_too_big",
    /// A packet that waited for its session while too many others did.
    PeerQueueFull => "peer_queue_full",
    /// A probe beyond the number that one peer's are answered.
    ProbeLimited => "probe_limited",
    /// A decrypted packet whose destination is not the session's own agent.
    SessionDestination => "session_destination",
    /// A message of a session that does not open, was replayed, or is out of order.
    SessionInvalid => "session_invalid",
    /// A decrypted packet whose source is not the session's peer.
    SessionSource => "session_source",
    /// A packet of an agent that is bound to a user or a control group, whose socket is another's.
    SocketOwner => "socket_owner",
    /// A STUN request beyond the number that one source's are answered.
    StunLimited => "stun_limited",
    /// A packet from a TUN to an address outside the agent's network, or to itself.
    TunDestination => "tun_destination",
    /// A packet for an agent without a TUN.
    TunMissing => "tun_missing",
    /// A packet from a TUN that is not from its agent.
    TunSource => "tun_source",
    /// A packet the kernel refused to take.
    TunWrite => "tun_write",
    /// A datagram the kernel refused to send, or had no room for.
    UdpSend => "udp_send",
    /// A packet to an unknown destination beyond the rate the engine is asked at.
    UnknownLimited => "unknown_limited",
    /// The worker's queue was full.
    WorkerQueueFull => "worker_queue_full",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How often each [`DropReason`] happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Counters([u64; DropReason::ALL.len()]);

impl Counters {
    /// Counts one drop.
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `n` drops.
    pub fn add(&mut self, reason: DropReason, n: u64) {
        if let Some(slot) = self.0.get_mut(reason as usize) {
            *slot = slot.saturating_add(n);
        }
    }

    /// Returns how often `reason` happened.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (reason, n) in other.nonzero() {
            self.add(reason, n);
        }
    }

    /// Returns the number of all drops.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Iterates over what happened at least once, by label.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let all = DropReason::ALL.iter().copied().zip(self.0);
        all.filter(|(_, n)| *n > 0)
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_and_labels_go_together() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            let mut snake = String::new();
            for c in format!("{reason:?}").chars() {
                if c.is_uppercase() && !snake.is_empty() {
                    snake.push('_');
                }
                snake.extend(c.to_lowercase());
            }

            assert_eq!(snake, reason.label());
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn counters_add_up() {
        let mut a = Counters::default();
        let mut b = Counters::default();

        a.count(DropReason::IpLength);
        b.add(DropReason::IpLength, 2);
        b.add(DropReason::UdpSend, u64::MAX);
        a.merge(&b);

        assert_eq!(a.of(DropReason::IpLength), 3);
        assert_eq!(a.total(), u64::MAX);
        assert_eq!(a.nonzero().count(), 2);
    }
}
