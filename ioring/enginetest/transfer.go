package enginetest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

func readsBackWhatWasWritten(t *testing.T, b *bench) {
	for _, size := range []int{sector, 4096, 5 * sector, 256 << 10, memory / 2} {
		for _, off := range []int64{0, sector, fileSize - int64(size)} {
			from, to := b.other[:size], b.region[:size]
			b.fill(from)
			b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Off: off, Bufs: [][]byte{from}})
			b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Off: off, Bufs: [][]byte{to}})
			mustMatch(t, to, from)
		}
	}
}

// cut cuts p into pieces of the given numbers of sectors, over and over.
func cut(p []byte, sectors ...int) [][]byte {
	var pieces [][]byte
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), sector*sectors[i%len(sectors)])
		pieces = append(pieces, p[:n:n])
		p = p[n:]
	}
	return pieces
}

func piecesMakeOneTransfer(t *testing.T, b *bench) {
	const size = 96 * sector
	for _, mem := range [][]byte{b.region, b.other} {
		from, to := mem[:size], mem[size:2*size]
		b.fill(from)
		b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Off: 4096, DSync: true, Bufs: cut(from, 1, 2, 8, 3)})
		b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Off: 4096, Bufs: cut(to, 5, 1)})
		mustMatch(t, to, from)
	}

	// Pieces go to the file in their order, not in the order of their addresses.
	first, second := b.other[4096:8192], b.other[:4096]
	b.fill(b.other[:8192])
	b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Bufs: [][]byte{first, second}})
	b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Bufs: [][]byte{b.region[:8192]}})
	mustMatch(t, b.region[:8192], append(bytes.Clone(first), second...))
}

func asManyPiecesAsAllowed(t *testing.T, b *bench) {
	const size = ioring.MaxPieces * sector
	from, to := b.region[:size], b.other[:size]
	b.fill(from)
	b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Bufs: cut(from, 1)})
	b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Bufs: cut(to, 1)})
	mustMatch(t, to, from)

	err := b.do(ioring.Op{Kind: ioring.OpRead, Bufs: cut(b.other[:size+sector], 1)})
	if !errors.Is(err, redoubt.ErrInvalid) {
		t.Fatalf("one piece more than MaxPieces: %v, want ErrInvalid", err)
	}
}

// The two halves of the region are registered each on its own, so pieces may
// lie in one of them, in both, in neither, or across the border.
func registeredAndOtherBuffersMix(t *testing.T, b *bench) {
	const half = memory / 2
	lower, upper := b.region[:half], b.region[half:]
	for name, pieces := range map[string][][]byte{
		"one in the lower half":         {lower[4096:12288]},
		"one in the upper half":         {upper[half-8192:]},
		"one across the border":         {b.region[half-4096 : half+4096]},
		"one outside":                   {b.other[:8192]},
		"two in the lower half":         {lower[8192:12288], lower[:4096]},
		"two in the upper half":         {upper[:4096], upper[half-4096:]},
		"one in each half":              {lower[:4096], upper[:4096]},
		"one inside, one outside":       {lower[:4096], b.other[:4096]},
		"one outside, one inside":       {b.other[:4096], upper[:4096]},
		"two outside":                   {b.other[:4096], b.other[8192:12288]},
		"one inside, one over a border": {lower[:4096], b.region[half-sector : half+sector]},
	} {
		t.Run(name, func(t *testing.T) {
			for _, dsync := range []bool{false, true} {
				var want []byte
				for _, p := range pieces {
					b.fill(p)
					want = append(want, p...)
				}
				b.mustDo(t, ioring.Op{Kind: ioring.OpWrite, Off: 65536, DSync: dsync, Bufs: pieces})
				for _, p := range pieces {
					clear(p)
				}
				b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Off: 65536, Bufs: pieces})
				mustMatch(t, bytes.Join(pieces, nil), want)
			}
		})
	}
}

// syncAndDSync runs each kind after each other kind many times over: an entry
// of the ring must keep nothing of what it was used for before.
func syncAndDSync(t *testing.T, b *bench) {
	one, two := b.region[:4096], [][]byte{b.other[:4096], b.other[4096:8192]}
	kinds := []ioring.Op{
		{Kind: ioring.OpSync},
		{Kind: ioring.OpWrite, Bufs: [][]byte{one}},
		{Kind: ioring.OpWrite, Bufs: [][]byte{one}, DSync: true},
		{Kind: ioring.OpWrite, Bufs: two},
		{Kind: ioring.OpWrite, Bufs: two, DSync: true},
		{Kind: ioring.OpRead, Bufs: [][]byte{one}},
		{Kind: ioring.OpRead, Bufs: two},
	}
	for range 1500 {
		op := kinds[b.rnd.IntN(len(kinds))]
		if op.Kind != ioring.OpSync {
			op.Off = int64(b.rnd.IntN(fileSize/sector-16)) * sector
		}
		b.mustDo(t, op)
	}
}

func readPastTheEnd(t *testing.T, b *bench) {
	for _, off := range []int64{fileSize - 4096, fileSize - sector, fileSize, fileSize + 1<<20} {
		err := b.do(ioring.Op{Kind: ioring.OpRead, Off: off, Bufs: [][]byte{b.region[:8192]}})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read of 8192 bytes at %d of %d: %v, want io.ErrUnexpectedEOF", off, fileSize, err)
		}
	}
	b.mustDo(t, ioring.Op{Kind: ioring.OpRead, Off: fileSize - 4096, Bufs: [][]byte{b.region[:4096]}})
}

func badAlignment(t *testing.T, b *bench) {
	probe := make([]byte, sector+1)
	if _, err := unix.Pread(b.fd, probe, 1); err == nil && b.engine.Name() != "sim" {
		t.Skip("this file system has no O_DIRECT that minds")
	}
	for name, op := range map[string]ioring.Op{
		"offset": {Off: 100, Bufs: [][]byte{b.region[:sector]}},
		"length": {Bufs: [][]byte{b.region[:sector-1]}},
		"piece":  {Bufs: [][]byte{b.other[:sector], b.other[sector : 2*sector+8]}},
	} {
		for _, kind := range []ioring.Kind{ioring.OpRead, ioring.OpWrite} {
			op.Kind = kind
			if err := b.do(op); !errors.Is(err, unix.EINVAL) {
				t.Errorf("%v with a bad %s: %v, want EINVAL", kind, name, err)
			}
		}
	}
}

func malformedOps(t *testing.T, b *bench) {
	good := [][]byte{b.region[:sector]}
	for name, op := range map[string]ioring.Op{
		"no kind":          {Bufs: good},
		"unknown kind":     {Kind: 9, Bufs: good},
		"read of nothing":  {Kind: ioring.OpRead},
		"write of nothing": {Kind: ioring.OpWrite},
		"empty piece":      {Kind: ioring.OpWrite, Bufs: [][]byte{good[0], nil}},
		"sync of a buffer": {Kind: ioring.OpSync, Bufs: good},
		"DSync on a read":  {Kind: ioring.OpRead, DSync: true, Bufs: good},
		"DSync on a sync":  {Kind: ioring.OpSync, DSync: true},
		"negative offset":  {Kind: ioring.OpRead, Off: -sector, Bufs: good},
	} {
		if err := b.do(op); !errors.Is(err, redoubt.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}
