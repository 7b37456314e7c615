use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{NetworkId, UnixTime};
use crate::statement::{ChainError, Revocation, Revocations, Statement};

/// Most statements kept, so that no registry can fill the disk.
const MAX_STATEMENTS: usize = 4096;

/// The revocations of one network as they came, and what they amount to.
///
/// What they amount to is worked out once a statement, since every chain is checked against it.
#[derive(Clone, Debug, Default)]
pub struct RevocationLog {
    statements: Vec<Statement<Revocation>>,
    held: Revocations,
}

impl RevocationLog {
    /// Returns what is revoked.
    pub const fn held(&self) -> &Revocations {
        &self.held
    }

    /// Adds a statement whose author's chain holds at `now`; tells whether it was new.
    pub(crate) fn add(
        &mut self,
        statement: Statement<Revocation>,
        root: &NetworkId,
        now: UnixTime,
    ) -> Result<bool, ChainError> {
        if self.statements.len() >= MAX_STATEMENTS && !self.statements.contains(&statement) {
            return Err(ChainError::Length);
        }
        let is_new = self.held.add(&statement, root, now)?;
        if is_new {
            self.statements.push(statement);
        }
        Ok(is_new)
    }
}

impl Serialize for RevocationLog {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.statements.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RevocationLog {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let statements = Vec::<Statement<Revocation>>::deserialize(deserializer)?;
        let mut log = Self::default();
        for statement in statements {
            // Each was checked when it came; the author's chain may have ended since.
            let (root, issued) = (statement.network(), statement.issued());
            if let Some(root) = root {
                drop(log.add(statement, &root, issued));
            }
        }
        Ok(log)
    }
}
