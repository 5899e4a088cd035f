// Package devtest is a disk that lives in memory, does exactly what a disk with
// a volatile cache may do, and can be told to tear, rot and lie. It implements
// ioring.Engine under the name "sim" and passes the suite that the real engines
// pass.
//
// # The model
//
//	Submit          completion                  a sync that was submitted after
//	  |                 |                       the completion completes
//	  v                 v                                 v
//	in flight ------> in the cache ------------------> on the medium
//	                       (DSync: straight to the medium, on completion)
//
// Operations that are in flight together have no order. Reads see the medium
// and the cache. A power cut leaves the medium, and of every write in flight or
// in the cache any of: all of it, nothing of it, or some of its 512-byte
// sectors. [Disk.CrashStates] walks through those worlds and makes an
// independent disk of each; images share their pages until they are written, so
// thousands are cheap.
//
// After a failed sync the writes that it should have covered are never promised to
// be on the medium, whatever later syncs say: that is what kernels do.
//
// # When operations complete
//
// By default inside Submit, one after the other, in order: single-threaded
// tests are deterministic. A Submit from within a Done is queued and completes
// when that Done has returned, so chains of operations don't recurse; a Submit
// that finds another goroutine at it may leave its operations to that one.
// After [Disk.Hold] operations wait until the test picks them with
// [Disk.Complete], in any order.
//
// # Faults
//
// A [Fault] is armed with [Disk.Arm] for the k-th operation that touches a
// range. Its [Injection] counts how often it made a difference, and
// [Injection.MustHaveInjected] fails the test if it never did: an injector
// that injects nothing makes every test of recovery pass.
//
// Like a device with O_DIRECT the disk refuses operations whose offset, lengths
// or memory are not aligned to its logical block, and it panics if a buffer was
// changed while its write was in flight.
package devtest
