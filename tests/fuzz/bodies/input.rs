//! Takes an input apart.

/// The bytes of an input that are not used yet; behind the end there are zeros.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one byte.
    pub(super) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Takes a number, most significant byte first.
    pub(super) fn number(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// Takes `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    /// Takes at most `n` bytes.
    pub(super) fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Takes bytes that are preceded by their number.
    pub(super) fn chunk(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte());
        self.take(n)
    }

    /// Takes bytes that are preceded by their number, which has two bytes.
    pub(super) fn long_chunk(&mut self) -> &'a [u8] {
        let n = usize::from(self.number());
        self.take(n)
    }

    /// Takes everything that is left.
    pub(super) const fn rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.0 = &[];
        rest
    }
}
