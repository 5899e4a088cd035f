package blockdev

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/ioring"
	"golang.org/x/sys/unix"
)

// FormatOptions say how to format a device.
type FormatOptions struct {
	// Size of a file in bytes, a multiple of 4096. Default, for a file that
	// exists, its size. A block device has its own.
	Size int64

	// ExtentSize in bytes, a power of two from MinExtentSize to MaxExtentSize.
	// Default DefaultExtentSize.
	ExtentSize int64

	// Cluster and Node say whose device it will be. Required.
	Cluster redoubt.ClusterID
	Node    redoubt.NodeID

	// Position among the node's devices, from 0, and their number. Default: the
	// only one.
	Position, Count int

	// Force formats what looks used.
	Force bool

	// Progress is told, now and then, how many of the bytes to write are
	// written. Default nobody.
	Progress func(done, total int64)

	device redoubt.DeviceID // tests give one; default random
	now    time.Time        // tests give one; default the clock's
}

// usedProbe is how much of the beginning of a device must be zero for it to
// look unused.
const usedProbe = 1 << 20

// A formatter writes a new device.
type formatter struct {
	e    ioring.Engine
	o    FormatOptions
	sb   Superblock
	fill bool   // write the extents too
	buf  []byte // aligned, chunk bytes
}

// chunk is the size of the writes that fill a file: the largest at which one
// device still gains from size.
const chunk = 1 << 20

// newFormatter checks the options against the device and decides its geometry.
func newFormatter(e ioring.Engine, path string, size int64, blockSize int, o FormatOptions) (*formatter, error) {
	if o.ExtentSize == 0 {
		o.ExtentSize = DefaultExtentSize
	}
	if o.Count == 0 && o.Position == 0 {
		o.Count = 1
	}
	if o.device == (redoubt.DeviceID{}) {
		o.device = redoubt.DeviceID(redoubt.NewID())
	}
	if o.now.IsZero() {
		o.now = time.Now()
	}
	switch {
	case o.Cluster == redoubt.ClusterID{} || o.Node == redoubt.NodeID{}:
		return nil, fmt.Errorf("format: cluster and node are needed: %w", redoubt.ErrInvalid)
	case o.Count < 1 || o.Count > MaxDevices || o.Position < 0 || o.Position >= o.Count:
		return nil, fmt.Errorf("format: position %d of %d devices: want 1 to %d devices, positions from 0: %w", o.Position, o.Count, MaxDevices, redoubt.ErrInvalid)
	case !goodBlockSize(blockSize):
		return nil, fmt.Errorf("format: logical blocks of %d bytes: want %d to %d: %w", blockSize, minBlockSize, maxBlockSize, redoubt.ErrInvalid)
	}
	size = size &^ (slotSize - 1)
	extents, dataOff, err := geometry(size, o.ExtentSize)
	if err != nil {
		return nil, fmt.Errorf("format: %w", err)
	}
	sb := Superblock{
		Path: path, Version: Version, Cluster: o.Cluster, Node: o.Node, Device: o.device, Position: o.Position, Count: o.Count,
		Size: size, BlockSize: blockSize, ExtentSize: o.ExtentSize, ExtentCount: extents, TableOff: tableOff, DataOff: dataOff,
		Created: o.now.Truncate(time.Second).UTC(),
	}
	buf, err := newScratch(chunk)
	if err != nil {
		return nil, err
	}
	return &formatter{e: e, o: o, sb: sb, buf: buf}, nil
}

func (f *formatter) close() { unix.Munmap(f.buf) }

// run writes the device. What stood there before is no device any more from
// the first step on, and the new one is one only after the last.
func (f *formatter) run(ctx context.Context) (Superblock, error) {
	until := f.sb.DataOff
	if f.fill {
		until = f.sb.Size
	}
	err := f.zero(ctx, 0, tableOff, until)
	if err == nil {
		err = engineSync(f.e)
	}
	if err == nil {
		err = f.zero(ctx, tableOff, until, until)
	}
	if err == nil {
		err = f.table(ctx)
	}
	if err == nil {
		err = engineSync(f.e)
	}
	for g := uint64(1); g <= 2 && err == nil; g++ {
		err = f.super(g)
	}
	if err != nil {
		return Superblock{}, fmt.Errorf("format: %w", err)
	}
	return f.sb, nil
}

// super writes generation g of the superblock.
func (f *formatter) super(g uint64) error {
	f.sb.Generation = g
	clear(f.buf[:superSize])
	f.sb.put(f.buf)
	if err := f.write(f.buf[:superSize], superOff(g%2)); err != nil {
		return err
	}
	return engineSync(f.e)
}

// table writes both slots of every page.
func (f *formatter) table(ctx context.Context) error {
	pages := tablePages(f.sb.ExtentCount)
	seed := tableSeed(f.sb.Device)
	entries := make([]Extent, pageEntries) // all free, generation 0
	for slot := range 2 {
		for p := 0; p < pages; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(chunk/slotSize, pages-p)
			for i := range n {
				h := slotHeader{page: uint32(p + i), sequence: firstSequence + uint64(slot), super: 1}
				putSlot(f.buf[i*slotSize:], seed, h, entries)
			}
			if err := f.write(f.buf[:n*slotSize], slotOff(pages, uint32(p), slot)); err != nil {
				return err
			}
			p += n
		}
	}
	return nil
}

func (f *formatter) write(b []byte, off int64) error {
	return engineDo(f.e, ioring.Op{Kind: ioring.OpWrite, Off: off, Bufs: [][]byte{b}})
}

// zero writes zeros to [from, to), a few large writes at a time, and reports
// progress out of total.
func (f *formatter) zero(ctx context.Context, from, to, total int64) error {
	const depth = 4
	clear(f.buf)
	var ops [depth]ioring.Op
	free := make(chan *ioring.Op, depth)
	var failed error
	done := make(chan error, depth)
	for i := range ops {
		ops[i] = ioring.Op{Kind: ioring.OpWrite, Bufs: make([][]byte, 1), Done: func(op *ioring.Op, err error) {
			done <- err
			free <- op
		}}
		free <- &ops[i]
	}
	note := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	inFlight := 0
	for off := from; off < to && failed == nil; {
		if err := ctx.Err(); err != nil {
			failed = context.Cause(ctx)
			break
		}
		op := <-free
		if inFlight == depth {
			inFlight--
			note(<-done)
		}
		n := min(chunk, to-off)
		op.Off, op.Bufs[0] = off, f.buf[:n]
		op.SubmitTo(f.e)
		inFlight++
		off += n
		if f.o.Progress != nil {
			f.o.Progress(off, total)
		}
	}
	for ; inFlight > 0; inFlight-- {
		note(<-done)
	}
	return failed
}

// refuseUsed returns an error if the beginning of a device, b, shows that it is
// in use. It may end early.
func refuseUsed(b []byte) error {
	for i := range uint64(2) {
		if off := superOff(i); int64(len(b)) >= off+8 && bytes.Equal(b[off:off+8], superMagic) {
			return fmt.Errorf("it is a redoubt device already (superblock copy %s); -force destroys it: %w", copyName(int(i)), redoubt.ErrExists)
		}
	}
	if !allZero(b) {
		return fmt.Errorf("it is not empty (there is something in its first MiB); -force destroys it: %w", redoubt.ErrExists)
	}
	return nil
}

// FormatEngine formats a device of size bytes behind an engine, with logical
// blocks of blockSize bytes. It writes superblocks and table only. See Format.
func FormatEngine(e ioring.Engine, size int64, blockSize int, o FormatOptions) (Superblock, error) {
	sb, err := formatEngine(e, size, blockSize, o)
	return sb, wrap(e.Name(), err)
}

func formatEngine(e ioring.Engine, size int64, blockSize int, o FormatOptions) (Superblock, error) {
	f, err := newFormatter(e, e.Name(), size, blockSize, o)
	if err != nil {
		return Superblock{}, err
	}
	defer f.close()
	if !o.Force {
		b := f.buf[:min(usedProbe, f.sb.Size)]
		if err := engineRead(e, b, 0); err != nil {
			return Superblock{}, err
		}
		if err := refuseUsed(b); err != nil {
			return Superblock{}, err
		}
	}
	return f.run(context.Background())
}
