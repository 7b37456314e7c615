//! Worlds with something deliberately wrong, each of which the checks must notice.

/// What is wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Packets wait for 3 s between engine and program, whatever happens meanwhile.
    DeliversLate,
    DeliversTwice,
    FlipsBytes,
    IgnoresScopes,
    /// What hosts send each other directly is lost, where the model knows of no cut.
    LosesProbes,
    /// Sealed packets that go by the gateway are lost.
    LosesRelayed,
    /// An agent consents without being told to.
    TrustsByItself,
}
