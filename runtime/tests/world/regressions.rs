//! Programs that once failed: they run first. What a failing test prints is pasted here.

use crate::world::Op::*;
use crate::world::Program;

pub(crate) fn regressions() -> Vec<Program> {
    vec![
        // What lay behind an allocation's bytes was lost with a device that had been given its last granule: no launch got it any more,
        // and nobody could write it anew.
        Program {
            policy: "remote",
            devices: [0, 1],
            threads: vec![vec![
                ToDevice { of: 0, dev: 1 },
                AddChunks { of: 0, chunk: 10, value: 3 },
                Clone { of: 0 },
                Lose { dev: 1 },
                AddChunks { of: 0, chunk: 9, value: 1 },
            ]],
        },
        // A launch that ended well, and was looked at after its device's loss, healed what was lost with it: a load then found
        // nothing to load.
        Program {
            policy: "declared",
            devices: [0, 0],
            threads: vec![vec![
                Fill { of: 1, dev: 1, at: 18483, len: 56667, value: 893 },
                Add { of: 0, dev: 1, at: 57601, len: 22839, value: 868 },
                Lose { dev: 1 },
                Read { of: 1, at: 0, len: 65535 },
            ]],
        },
        // Nobody owned what lay beside a page in its grain and was lost with it: no launch got the page any more.
        Program {
            policy: "declared",
            devices: [0, 5],
            threads: vec![vec![
                Truncate { of: 1, at: 1 },
                Split { of: 1, at: 0 },
                Add { of: 2, dev: 0, at: 0, len: 21845, value: 0 },
                BesideGuard { of: 0, dev: 0, at: 1, value: 0 },
                Lose { dev: 0 },
                ReadOnly { of: 1, dev: 0 },
            ]],
        },
        // A kernel waited for ever for a page that had been lost, since the program wanted it used at home.
        Program {
            policy: "declared",
            devices: [0, 5],
            threads: vec![vec![
                Add { of: 1, dev: 1, at: 12847, len: 46932, value: 621 },
                Add { of: 0, dev: 1, at: 17232, len: 13226, value: 562 },
                Advise { of: 1, dev: 0, at: 32746, len: 62497, what: 0 },
                Clone { of: 0 },
                AddChunks { of: 1, chunk: 29, value: 614 },
                Add { of: 0, dev: 1, at: 29505, len: 34899, value: 376 },
                Fill { of: 2, dev: 0, at: 26619, len: 39595, value: 72 },
                Lose { dev: 1 },
                Copy { from: 2, to: 0, dev: 1, value: 267 },
            ]],
        },
        // What a child was to find of one half was forgotten when the other's owner said something else.
        Program {
            policy: "declared",
            devices: [0, 0],
            threads: vec![vec![
                ForkPolicy { of: 0, what: 1 },
                Split { of: 0, at: 30000 },
                ForkPolicy { of: 0, what: 2 },
                Fork,
            ]],
        },
        // A file was read into pages that no system call may write.
        Program {
            policy: "demand",
            devices: [0, 4],
            threads: vec![vec![ToDevice { of: 0, dev: 1 }, ToDevice { of: 1, dev: 1 }, ReadFile { of: 0 }]],
        },
        // What a fault was to bring along was more than there was room for: it pushed itself out again and again, and the page that
        // was asked for never came.
        Program {
            policy: "demand",
            devices: [1, 4],
            threads: vec![vec![
                Budget { dev: 0, left: 30 },
                ToDevice { of: 1, dev: 0 },
                ToDevice { of: 0, dev: 1 },
                Read { of: 1, at: 38155, len: 42643 },
                AddChunks { of: 1, chunk: 99, value: 433 },
            ]],
        },
    ]
}
