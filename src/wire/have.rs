/// What one end of a session has, as it tells the other (protocol.md section 6).
///
/// Policy and tree head come after these fields once they are built; absent means zero.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Have {
    pub revocations: Summary,
    /// Sequence number of the receiver's record that the sender keeps; 0 without one.
    pub record: u64,
    /// Sequence number of the receiver's consent that the sender keeps; 0 without one.
    pub consent: u64,
}

/// A set of revocations, in few bytes: equal sets have equal summaries, and only they.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    pub count: u32,
    /// SHA-256 over the statements' hashes in rising order; zeros for none.
    pub hash: [u8; 32],
}

impl Have {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend(self.revocations.count.to_be_bytes());
        body.extend(self.revocations.hash);
        body.extend(self.record.to_be_bytes());
        body.extend(self.consent.to_be_bytes());
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let (count, rest) = body.split_first_chunk()?;
        let (hash, rest) = rest.split_first_chunk()?;
        let (record, rest) = rest.split_first_chunk()?;
        Some(Self {
            revocations: Summary {
                count: u32::from_be_bytes(*count),
                hash: *hash,
            },
            record: u64::from_be_bytes(*record),
            consent: u64::from_be_bytes(*rest.first_chunk()?),
        })
    }
}
