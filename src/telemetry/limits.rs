//! What the container, or whoever started this process, lets it have: read from the kernel's files, at the start.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Version 1 says "no limit" by a number near the largest there is.
const UNLIMITED: u64 = 1 << 60;

/// Ceilings on this process; none where there is none, or none that it can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, of all processes of its control group.
    pub memory: Option<u64>,
    /// Threads, of all processes of its control group.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub open_files: Option<u64>,
}

impl Limits {
    /// As they are now.
    pub fn read() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let least = |name: [&str; 2], controller| least(Path::new(CGROUPS), &groups, name, controller);
        Self {
            memory: least(["memory.max", "memory.limit_in_bytes"], "memory"),
            threads: least(["pids.max", "pids.max"], "pids"),
            open_files: getrlimit(Resource::Nofile).current,
        }
    }
}

impl Limits {
    /// What this process leaves of the memory that it may have, bytes; none where there is no ceiling on that. (Others of its control
    /// group are not asked for: a container has this process alone.)
    pub fn memory_left() -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Self::read().memory.map(|limit| limit.saturating_sub(kib.unwrap_or(0) << 10))
    }
}

/// The least limit of our group and those around it, by the file's name in version 2 and in version 1.
fn least(mounted: &Path, groups: &str, [v2, v1]: [&str; 2], controller: &str) -> Option<u64> {
    let files = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (mounted.to_owned(), v2),
            some if some.split(',').any(|name| name == controller) => (mounted.join(controller), v1),
            _ => return Vec::new(),
        };
        around(&root, path).map(|folder| folder.join(file)).collect()
    });
    files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).filter(|limit| *limit < UNLIMITED).min()
}

/// A group's directory and those above it. Within a container the mount may begin at our own group, whatever our path is
/// called: the root is always looked at.
fn around(root: &Path, path: &str) -> impl Iterator<Item = PathBuf> {
    let group = Path::new(path.trim_start_matches('/'));
    group.ancestors().map(|part| root.join(part)).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_our_group_and_those_around_it_counts_in_either_version() {
        let folder = std::env::temp_dir().join(format!("millrace-limits-{:016x}", fastrand::u64(..)));
        let put = |path: &str, text: &str| {
            let file = folder.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        put("pod/memory.max", "1000\n");
        put("pod/app/memory.max", "max\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        put("memory/here/memory.limit_in_bytes", "2000\n");
        put("pids/pids.max", "50\n");
        let names = ["memory.max", "memory.limit_in_bytes"];
        for (groups, limit) in [
            ("0::/pod/app\n", Some(1000)),
            ("0::/\n", None),
            ("0::/elsewhere\n", None),
            ("5:memory:/here\n0::/\n", Some(2000)),
            ("5:cpu,memory:/here\n", Some(2000)),
            ("5:memory:/not/mounted\n", None),
            ("5:memory\n\n:\n", None),
        ] {
            assert_eq!(least(&folder, groups, names, "memory"), limit, "{groups}");
        }
        assert_eq!(least(&folder, "7:pids:/docker/abc\n", ["pids.max", "pids.max"], "pids"), Some(50));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn this_process_has_a_ceiling_of_open_files() {
        assert!(Limits::read().open_files.is_none_or(|most| most > 0));
    }
}
