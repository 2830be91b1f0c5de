//! Enums whose variants are words in the configuration, the ledger, logs, labels and paths.

/// Each variant has a word, which `as_str` and serde write and `FromStr` reads.
macro_rules! words {
    ($($(#[$about:meta])* $visible:vis enum $name:ident {
        $($(#[$what:meta])* $variant:ident = $word:literal),+ $(,)?
    })+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $visible enum $name { $($(#[$what])* $variant),+ }

        impl $name {
            $visible const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];
            $visible fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = ();

            fn from_str(word: &str) -> Result<Self, ()> {
                Self::ALL.into_iter().find(|one| one.as_str() == word).ok_or(())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    )+};
}
pub(crate) use words;
