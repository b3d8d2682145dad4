//! The process's limit of open files. Each client has about 8 on one broker and more on several, and a shell's usual
//! limit of 1,024 is soon reached.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to the most that the process may have; what it then is, if it is limited.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Not being able to is no reason not to start: whoever runs out of files says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_the_most_there_is() {
        assert_eq!(raise_open_files(), getrlimit(Resource::Nofile).maximum);
    }
}
