;; `wasi_snapshot_preview1` for plugins: every function is there, and none grants anything.
;;
;; Arguments and environment are empty; there is no file and no socket; clocks count their own calls, randomness repeats
;; itself; stdout and stderr become log lines. It runs inside of the plugin, as plain code in the plugin's own memory: a
;; toolchain's runtime may ask the clock or for random bytes at any moment, Go's does so inside of `cabi_realloc`, where
;; a call out of the component would trap. Only a line that is complete calls out.
;;
;; wit-component links it as an adapter, and takes away what a plugin does not import. It allows no data, no tables and no
;; memory of its own. For a global of the name `__stack_pointer` it adds, at instantiation, before any code of the
;; plugin, a page to the plugin's memory, whose end the global then holds: the two lines under way lie there. (Later would
;; be too late: Go's runtime takes memory that it did not ask for itself for its own.)
(module
  ;; level, line, its length, about: no record
  (import "millrace:plugin/log@0.1.1" "log" (func $log (param i32 i32 i32 i32 i32)))
  (import "env" "memory" (memory 0))

  (global $__stack_pointer (mut i32) (i32.const 0))
  ;; Bytes of the lines under way, by descriptor.
  (global $out_length (mut i32) (i32.const 0))
  (global $err_length (mut i32) (i32.const 0))
  ;; Nanoseconds on every clock: 1,000 for each time that one is asked.
  (global $now (mut i64) (i64.const 0))
  (global $random (mut i64) (i64.const 0x6d696c6c72616365))

  ;; ---- arguments and environment: none ------------------------------------------------------------------------------
  (func $nothing (param $count i32) (param $size i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $size) (i32.const 0))
    (i32.const 0))
  (func (export "args_sizes_get") (param i32 i32) (result i32) (call $nothing (local.get 0) (local.get 1)))
  (func (export "environ_sizes_get") (param i32 i32) (result i32) (call $nothing (local.get 0) (local.get 1)))
  (func (export "args_get") (param i32 i32) (result i32) (i32.const 0))
  (func (export "environ_get") (param i32 i32) (result i32) (i32.const 0))

  ;; ---- clocks: a count that is not the time, which never stands still --------------------------------------------------
  (func (export "clock_res_get") (param $clock i32) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 3)) (then (return (i32.const 28 (;EINVAL;)))))
    (i64.store (local.get $to) (i64.const 1000))
    (i32.const 0))
  (func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $clock) (i32.const 3)) (then (return (i32.const 28 (;EINVAL;)))))
    (global.set $now (i64.add (global.get $now) (i64.const 1000)))
    (i64.store (local.get $to) (global.get $now))
    (i32.const 0))

  ;; Whatever is waited for has come: a sleep sets the clocks forward instead of passing time.
  (func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $ready i32) (result i32)
    (local $left i32)
    (local $until i64)
    (if (i32.eqz (local.get $count)) (then (return (i32.const 28 (;EINVAL;)))))
    (local.set $left (local.get $count))
    (loop $next
      (memory.fill (local.get $out) (i32.const 0) (i32.const 32))
      (i64.store (local.get $out) (i64.load (local.get $in))) ;; its userdata
      (i32.store8 offset=10 (local.get $out) (i32.load8_u offset=8 (local.get $in))) ;; its kind
      (if (i32.load8_u offset=8 (local.get $in))
        (then
          (if (i32.gt_u (i32.load offset=16 (local.get $in)) (i32.const 2))
            (then (i32.store16 offset=8 (local.get $out) (i32.const 8 (;EBADF;))))))
        (else
          (local.set $until (i64.load offset=24 (local.get $in)))
          (if (i32.eqz (i32.and (i32.load16_u offset=40 (local.get $in)) (i32.const 1))) ;; not absolute
            (then (local.set $until (i64.add (global.get $now) (local.get $until)))))
          (if (i64.gt_u (local.get $until) (global.get $now)) (then (global.set $now (local.get $until))))))
      (local.set $in (i32.add (local.get $in) (i32.const 48)))
      (local.set $out (i32.add (local.get $out) (i32.const 32)))
      (br_if $next (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
    (i32.store (local.get $ready) (local.get $count))
    (i32.const 0))
  (func (export "sched_yield") (result i32) (i32.const 0))

  ;; ---- randomness: SplitMix64 from a constant, so that a batch given again gives the same ----------------------------------
  (func (export "random_get") (param $to i32) (param $length i32) (result i32)
    (local $z i64)
    (local $end i32)
    (local.set $end (i32.add (local.get $to) (local.get $length)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $to) (local.get $end)))
        (global.set $random (i64.add (global.get $random) (i64.const 0x9e3779b97f4a7c15)))
        (local.set $z (global.get $random))
        (local.set $z (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 30)))
                               (i64.const 0xbf58476d1ce4e5b9)))
        (local.set $z (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 27)))
                               (i64.const 0x94d049bb133111eb)))
        (local.set $z (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 31))))
        (if (i32.ge_u (i32.sub (local.get $end) (local.get $to)) (i32.const 8))
          (then
            (i64.store (local.get $to) (local.get $z))
            (local.set $to (i32.add (local.get $to) (i32.const 8))))
          (else
            (i64.store8 (local.get $to) (local.get $z))
            (local.set $to (i32.add (local.get $to) (i32.const 1)))))
        (br $next)))
    (i32.const 0))

  ;; ---- stdin, at its end; stdout and stderr, lines of the log --------------------------------------------------------------
  (func (export "fd_write") (param $fd i32) (param $slices i32) (param $count i32) (param $written i32) (result i32)
    (local $from i32)
    (local $end i32)
    (local $total i32)
    (if (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1)) (then (return (i32.const 8 (;EBADF;)))))
    (block $done
      (loop $slice
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $from (i32.load (local.get $slices)))
        (local.set $end (i32.add (local.get $from) (i32.load offset=4 (local.get $slices))))
        (local.set $total (i32.add (local.get $total) (i32.load offset=4 (local.get $slices))))
        (block $written
          (loop $byte
            (br_if $written (i32.ge_u (local.get $from) (local.get $end)))
            (call $put (local.get $fd) (i32.load8_u (local.get $from)))
            (local.set $from (i32.add (local.get $from) (i32.const 1)))
            (br $byte)))
        (local.set $slices (i32.add (local.get $slices) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $slice)))
    (i32.store (local.get $written) (local.get $total))
    (i32.const 0))

  ;; Adds a byte to the line of a descriptor; a newline, or the 4,096th byte, ends it.
  (func $put (param $fd i32) (param $byte i32)
    (local $length i32)
    (if (i32.eq (local.get $byte) (i32.const 10)) (then (call $flush (local.get $fd)) (return)))
    (local.set $length (call $length (local.get $fd)))
    (i32.store8 (i32.add (call $line (local.get $fd)) (local.get $length)) (local.get $byte))
    (local.set $length (i32.add (local.get $length) (i32.const 1)))
    (call $set_length (local.get $fd) (local.get $length))
    (if (i32.eq (local.get $length) (i32.const 4096)) (then (call $flush (local.get $fd)))))

  ;; Hands the line over: of stdout as `info`, of stderr as `warn`. One without content is none.
  (func $flush (param $fd i32)
    (local $length i32)
    (local.set $length (call $length (local.get $fd)))
    (call $set_length (local.get $fd) (i32.const 0))
    (if (i32.eqz (local.get $length)) (then (return)))
    (call $make_utf8 (call $line (local.get $fd)) (local.get $length))
    (call $log (i32.add (local.get $fd) (i32.const 1)) (call $line (local.get $fd)) (local.get $length)
               (i32.const 0) (i32.const 0)))

  (func $line (param $fd i32) (result i32)
    (i32.sub (global.get $__stack_pointer) (i32.mul (local.get $fd) (i32.const 4096))))
  (func $length (param $fd i32) (result i32)
    (select (global.get $out_length) (global.get $err_length) (i32.eq (local.get $fd) (i32.const 1))))
  (func $set_length (param $fd i32) (param $length i32)
    (if (i32.eq (local.get $fd) (i32.const 1))
      (then (global.set $out_length (local.get $length)))
      (else (global.set $err_length (local.get $length)))))

  ;; Puts `?` for each byte that is not part of UTF-8: a string that is none would be a trap.
  (func $make_utf8 (param $at i32) (param $length i32)
    (local $end i32)
    (local $size i32)
    (local.set $end (i32.add (local.get $at) (local.get $length)))
    (loop $next
      (local.set $size (call $character (local.get $at) (i32.sub (local.get $end) (local.get $at))))
      (if (i32.eqz (local.get $size))
        (then
          (i32.store8 (local.get $at) (i32.const 0x3f))
          (local.set $size (i32.const 1))))
      (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (local.get $size))) (local.get $end)))))

  ;; The bytes of the character that stands here, of at most `left`; 0 where none does.
  (func $character (param $at i32) (param $left i32) (result i32)
    (local $byte i32)
    (local $size i32)
    (local $least i32)
    (local $code i32)
    (local $i i32)
    (local.set $byte (i32.load8_u (local.get $at)))
    (if (i32.lt_u (local.get $byte) (i32.const 0x80)) (then (return (i32.const 1))))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xe0)) (i32.const 0xc0))
      (then
        (local.set $size (i32.const 2))
        (local.set $least (i32.const 0x80))
        (local.set $code (i32.and (local.get $byte) (i32.const 0x1f)))))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xf0)) (i32.const 0xe0))
      (then
        (local.set $size (i32.const 3))
        (local.set $least (i32.const 0x800))
        (local.set $code (i32.and (local.get $byte) (i32.const 0x0f)))))
    (if (i32.eq (i32.and (local.get $byte) (i32.const 0xf8)) (i32.const 0xf0))
      (then
        (local.set $size (i32.const 4))
        (local.set $least (i32.const 0x10000))
        (local.set $code (i32.and (local.get $byte) (i32.const 0x07)))))
    (if (i32.or (i32.eqz (local.get $size)) (i32.gt_u (local.get $size) (local.get $left)))
      (then (return (i32.const 0))))
    (local.set $i (i32.const 1))
    (loop $next
      (local.set $byte (i32.load8_u (i32.add (local.get $at) (local.get $i))))
      (if (i32.ne (i32.and (local.get $byte) (i32.const 0xc0)) (i32.const 0x80)) (then (return (i32.const 0))))
      (local.set $code (i32.or (i32.shl (local.get $code) (i32.const 6)) (i32.and (local.get $byte) (i32.const 0x3f))))
      (br_if $next (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $size))))
    ;; Longer than needed, a surrogate, or beyond the last character.
    (if (i32.or (i32.lt_u (local.get $code) (local.get $least))
                (i32.or (i32.eq (i32.shr_u (local.get $code) (i32.const 11)) (i32.const 0x1b))
                        (i32.gt_u (local.get $code) (i32.const 0x10ffff))))
      (then (return (i32.const 0))))
    (local.get $size))

  (func (export "fd_read") (param $fd i32) (param $slices i32) (param $count i32) (param $read i32) (result i32)
    (if (local.get $fd) (then (return (i32.const 8 (;EBADF;)))))
    (i32.store (local.get $read) (i32.const 0))
    (i32.const 0))

  ;; Each of the three is like a terminal: toolchains then hand over line by line.
  (func (export "fd_fdstat_get") (param $fd i32) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8 (;EBADF;)))))
    (memory.fill (local.get $to) (i32.const 0) (i32.const 24))
    (i32.store8 (local.get $to) (i32.const 2 (;a character device;)))
    (i64.store offset=8 (local.get $to)
      (select (i64.const 0x40 (;writing;)) (i64.const 0x02 (;reading;)) (local.get $fd)))
    (i32.const 0))
  (func (export "fd_filestat_get") (param $fd i32) (param $to i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8 (;EBADF;)))))
    (memory.fill (local.get $to) (i32.const 0) (i32.const 64))
    (i32.store8 offset=16 (local.get $to) (i32.const 2 (;a character device;)))
    (i32.const 0))

  (func $standard (param $fd i32) (param $answer i32) (result i32)
    (select (i32.const 8 (;EBADF;)) (local.get $answer) (i32.gt_u (local.get $fd) (i32.const 2))))
  (func (export "fd_close") (param i32) (result i32) (call $standard (local.get 0) (i32.const 0)))
  (func (export "fd_sync") (param i32) (result i32) (call $standard (local.get 0) (i32.const 0)))
  (func (export "fd_datasync") (param i32) (result i32) (call $standard (local.get 0) (i32.const 0)))
  (func (export "fd_fdstat_set_flags") (param i32 i32) (result i32) (call $standard (local.get 0) (i32.const 0)))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (call $standard (local.get 0) (i32.const 0)))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32)
    (call $standard (local.get 0) (i32.const 70 (;ESPIPE;))))
  (func (export "fd_tell") (param i32 i32) (result i32) (call $standard (local.get 0) (i32.const 70 (;ESPIPE;))))
  (func (export "fd_pread") (param i32 i32 i32 i64 i32) (result i32)
    (call $standard (local.get 0) (i32.const 70 (;ESPIPE;))))
  (func (export "fd_pwrite") (param i32 i32 i32 i64 i32) (result i32)
    (call $standard (local.get 0) (i32.const 70 (;ESPIPE;))))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32)
    (call $standard (local.get 0) (i32.const 70 (;ESPIPE;))))

  ;; ---- files and sockets: EBADF, since there is no descriptor that could be one --------------------------------------------
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_get") (param i32 i32) (result i32) (i32.const 8))
  (func (export "fd_prestat_dir_name") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "fd_readdir") (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_renumber") (param i32 i32) (result i32) (i32.const 8))
  (func (export "path_create_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_get") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "path_readlink") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_remove_directory") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_rename") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_symlink") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_unlink_file") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_accept") (param i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_recv") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_send") (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "sock_shutdown") (param i32 i32) (result i32) (i32.const 8))

  ;; ---- the process: its end is a trap, after its last words ------------------------------------------------------------------
  (func (export "proc_exit") (param $code i32)
    (call $flush (i32.const 1))
    (call $flush (i32.const 2))
    (unreachable))
  (func (export "proc_raise") (param i32) (result i32) (i32.const 52 (;ENOSYS;))))
