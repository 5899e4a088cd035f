// Package ioring moves bytes between memory and one device, asynchronously and
// without copying them. It knows reads, writes and syncs of a file at offsets,
// and nothing of what they mean.
//
// There are two engines behind one interface. "uring" owns an io_uring through
// the giouring library and is inside binaries built with -tags giouring. "sync"
// performs each op as one blocking system call on a bounded number of
// goroutines; it is inside every binary, costs about three times the CPU, and
// serves kernels and containers that forbid io_uring. [Open] takes the better one
// that works and says which and why. A third, simulated one stands in for both
// in the tests of the layers above; all of them pass package enginetest.
//
// # The life of an op
//
//	        Submit              thread                kernel             Done
//	caller --------> inbox ------------> slot, entry ---------> device --------> caller
//	  owns op and       |    take, fill        |      enter               |        owns op and
//	  buffers           +--------- the engine's: leave both alone --------+        buffers again
//
// From Submit to Done the op and the bytes of its buffers belong to the engine.
// Done is called exactly once for each Submit: with nil if every byte was
// transferred, else with an error that wraps the kernel's errno,
// [io.ErrUnexpectedEOF] (a read past the end), [io.ErrShortWrite],
// redoubt.ErrInvalid (an op that makes no sense) or redoubt.ErrClosed. EINTR,
// EAGAIN and EBUSY are tried again inside, a thousand times and no more. Nothing
// else is: a write that failed once is not to be trusted because it works the
// second time, and what follows from that is for the caller to decide.
//
// Done runs on a thread of the engine, and the next completion waits for it: it
// must not block, least of all on a lock that is held around a Submit. With the
// ring, the Dones of an engine run one after the other. The sync engine runs up to
// Options.Workers of them at once, and a simulated disk runs them inside Submit, so
// callers may rely neither on the one nor on the other. A Done may Submit, the
// same op or others; that costs no wake-up.
//
// There is no order. Ops may complete in any order and reach the device in any
// order, whether they were submitted by one call or by several. What must
// follow is submitted from the Done of what goes before. Above all a sync covers
// the writes that were complete when it was submitted, and no other: one that is
// submitted beside the write it should cover does not cover it.
//
// A write with DSync is on stable storage at its Done. Which of DSync, a sync for
// many writes, or neither a device needs is not known here; see package blockdev.
//
// # Threads of the ring
//
// One goroutine, locked to its thread from the first moment of the ring to
// the last, makes every call on it; SINGLE_ISSUER tells the kernel so, and
// DEFER_TASKRUN lets completions wait until that thread asks. It never unlocks, so
// the thread ends with the ring. It waits in a system call that the Go scheduler
// knows of: neither a garbage collection nor other goroutines wait for it.
//
// Around and around: take what has come, put a burst of it into the ring, enter
// the kernel once (submit the burst, and wait for a completion if there is nothing
// else to do), take again, hand back what is complete until nothing is.
//
// A burst is as many ops as are in the kernel already, and at least two. An idle
// device so gets its first ops while the others are still being prepared, and
// for a busy one many ops share a system call.
//
// At most as many ops are in the kernel as its completion queue holds, less one;
// it cannot overflow. The rest waits in order in a list that is linked through the
// ops, so that no queue of ours needs a bound, and none allocates.
//
// # Waking the thread
//
// The thread sleeps in io_uring_enter and wakes for any completion. So that a
// Submit can wake it too, a read on an eventfd is always armed in the ring. But a
// write to an eventfd costs more than all else in Submit, and under load the thread
// is up anyway. So Submit writes it only when the thread has said that it sleeps, and
// of many Submits only the first. One word holds it all, the inbox:
//
//	      submitter                    inbox                 thread
//	                                   nil
//	                                   asleep  <-- CAS ----  nothing left to do: nil -> asleep
//	                                     .                   io_uring_enter(wait 1)
//	push a: CAS asleep -> a  ------->  a                       .
//	write eventfd  - - - - - - - - - - - - - - - - - - - - ->  the armed read completes
//	push b: CAS a -> b -> a  ------->  b -> a                  .
//	(no write: not asleep)             nil  <-- swap -----  take: a, b; the mark is gone
//	push c: CAS nil -> c     ------->  c                     Dones of a, b run
//	(no write: not asleep)
//	                                   c    <-- CAS fails -  c came before the sleep: take it
//
// If the push comes before the thread's CAS, the CAS fails and the thread takes the
// push. If it comes after, the pusher sees the mark and writes the eventfd, whose
// read was armed before. There is no third case. The mark is taken away before the
// Dones run, or a Done that submits would wake its own thread.
//
// The thread may be up, for some completion, before the eventfd is written. Each
// side is therefore counted (a mark that was replaced, a write that was read) and
// Close leaves the eventfd open until both are equal: a late writer would write
// eight bytes into whatever file has its number by then.
//
// # What the kernel is given
//
// Descriptors: the device and the eventfd are registered, as files 0 and 1.
//
// Buffers: Options.Regions are registered in pieces of at most 1 GiB, the
// kernel's limit. An op all of whose pieces lie in one registered buffer goes as
// READ_FIXED or WRITE_FIXED, or with several pieces, from Linux 6.15 on, as
// READV_FIXED or WRITEV_FIXED; any other as READ, WRITE, READV or WRITEV. If the
// kernel will not lock that much memory (ENOMEM; see ulimit -l), none is
// registered, everything works at a higher cost, and Open says so.
//
// Vectors lie in a mapped area, not on the Go heap, and are free again once the
// kernel has taken the entry (IORING_FEAT_SUBMIT_STABLE). Ops that are in the kernel
// are kept in a table of slots, so the garbage collector cannot take their
// buffers; the user data of an entry is the number of its slot.
//
// # giouring's defects and how each is avoided
//
// Of version v0.0.0-20230826085535-69588b89acb9, seen on Linux 6.18 with Go 1.26:
//
//	it pulls in syscall.munmap by linkname, which the    build tag giouring and
//	linker refuses since Go 1.23                         -ldflags=-checklinkname=0
//	Prepare... calls leave fields of the entry's last    every entry is assigned as a
//	use standing: stale rw_flags fail with EINVAL        whole, never prepared
//	RegisterFiles passes 64-bit integers for 32-bit      raw Register with [2]int32
//	ones and swallows errors
//	RegisterBuffers takes the address of a first         raw Register with our own
//	element that may not be there                        vectors
//	UnregisterRingFd has its check inverted              the ring descriptor is not
//	                                                     registered
//	PeekBatchCQE walks over its whole argument, however  PeekCQE and CQESeen, one by
//	few completions there are                            one
//	SubmitAndWaitTimeout and PrepareTimeout hand out     no timeouts
//	addresses on the stack
//	CQ size and features are set and kept out of sight   a ring is made and closed by
//	                                                     hand first, to ask
//	opcodes end at SEND_ZC                               numbers of our own, behind a
//	                                                     REGISTER_PROBE
//
// And of the kernel: IOSQE_IO_DRAIN with DEFER_TASKRUN and a wait for more than one
// hangs on 6.18, so nothing is drained; DEFER_TASKRUN hands out some twenty
// completions an entry, so the thread comes back until there is none; closing a ring
// lets go of its files at some later time, so they are unregistered first.
package ioring
