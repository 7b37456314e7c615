//! From one agreement to the keys of a channel (protocol.md section 7).

use std::fmt;

use aws_lc_rs::{hkdf, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::{AgentId, NetworkId, TunnelKey, TunnelSecret, hash};
use crate::wire::channel::{MAC, Offer, Terms};

/// What a key is for.
#[derive(Clone, Copy, Debug)]
enum Label {
    HighToLow,
    LowToHigh,
    MacHigh,
    MacLow,
}

impl Label {
    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::HighToLow => b"H>L",
            Self::LowToHigh => b"L>H",
            Self::MacHigh => b"mac H",
            Self::MacLow => b"mac L",
        }
    }
}

/// One end of a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    pub identity: AgentId,
    pub tunnel: TunnelKey,
}

/// Between whom a channel is: L is the end with the lower tunnel key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ends {
    pub network: NetworkId,
    pub low: End,
    pub high: End,
}

impl Ends {
    /// Orders two ends.
    pub fn new(network: NetworkId, one: End, other: End) -> Self {
        let is_low = one.tunnel < other.tunnel;
        let (low, high) = if is_low { (one, other) } else { (other, one) };
        Self { network, low, high }
    }
}

/// A key of one direction: it leaves the engine once, for one sealer or opener, and is wiped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct DataKey([u8; 32]);

impl DataKey {
    /// Returns the key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Makes a key for tests and benchmarks of sealers and openers; all others come of a [`Schedule`].
pub(crate) const fn data_key(bytes: [u8; 32]) -> DataKey {
    DataKey(bytes)
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey")
    }
}

/// All that follows from one agreement.
pub struct Schedule {
    pub low_to_high: DataKey,
    pub high_to_low: DataKey,
    pub mac_low: [u8; MAC],
    pub mac_high: [u8; MAC],
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schedule")
    }
}

impl Schedule {
    /// Derives the keys at the end that holds `ephemeral`; None when the other's key is of small
    /// order.
    pub fn derive(
        ephemeral: &TunnelSecret,
        other: &[u8; 32],
        ends: &Ends,
        offer: &Offer,
        terms: &Terms,
    ) -> Option<Self> {
        let shared = ephemeral.agree(&TunnelKey::from_bytes(*other))?;
        let transcript = hash(&[&[&offer.encode()[..], &terms.encode()].concat()]);
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &transcript);
        let prk = salt.extract(shared.as_slice());
        Some(Self {
            low_to_high: DataKey(*expand(&prk, Label::LowToHigh, ends)?),
            high_to_low: DataKey(*expand(&prk, Label::HighToLow, ends)?),
            mac_low: mac(&prk, Label::MacLow, ends, &transcript)?,
            mac_high: mac(&prk, Label::MacHigh, ends, &transcript)?,
        })
    }
}

fn expand(prk: &hkdf::Prk, label: Label, ends: &Ends) -> Option<Zeroizing<[u8; 32]>> {
    let info: [&[u8]; 7] = [
        b"agentnet channel 1",
        label.bytes(),
        ends.network.as_bytes(),
        ends.low.identity.as_bytes(),
        ends.high.identity.as_bytes(),
        ends.low.tunnel.as_bytes(),
        ends.high.tunnel.as_bytes(),
    ];
    let mut key = Zeroizing::new([0; 32]);
    let okm = prk.expand(&info, hkdf::HKDF_SHA256).ok()?;
    okm.fill(key.as_mut_slice()).ok()?;
    Some(key)
}

fn mac(prk: &hkdf::Prk, label: Label, ends: &Ends, transcript: &[u8; 32]) -> Option<[u8; MAC]> {
    let key = expand(prk, label, ends)?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_slice());
    hmac::sign(&key, transcript).as_ref().first_chunk().copied()
}
