package node

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/netserver"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/wire"
)

// The in-place change from wire to disk works only while these agree.
var (
	_ = [1]int{}[wire.HeaderSize-segfile.RunHeaderSize]
	_ = [1]int{}[wire.EntryHeaderSize-segfile.BlockHeaderSize]
)

// An attachment is what a connection's handle stands for.
type attachment struct {
	lane *lane
	seg  *segfile.Segment
}

// An intake is one APPEND frame on its way to the log. It is used again, so
// that an append allocates nothing.
type intake struct {
	run   segfile.Run
	conn  *netserver.Conn
	req   uint64
	told  func(i int) (vdl, floor redoubt.LSN)
	done  func(*segfile.Run, error)
	frees *sync.Pool
}

func newIntake(pool *sync.Pool) *intake {
	in := &intake{frees: pool}
	in.told = in.readTold
	in.done = in.end
	return in
}

// readTold returns VDL and PGMRPL of an entry, which stand in its header on the
// wire until the log overwrites it.
func (in *intake) readTold(i int) (vdl, floor redoubt.LSN) {
	b := in.run.Bytes[in.run.Blocks[i].Off:]
	return redoubt.LSN(binary.LittleEndian.Uint64(b[8:])), redoubt.LSN(binary.LittleEndian.Uint64(b[16:]))
}

// Append implements netserver.Handler.
func (n *Node) Append(c *netserver.Conn, f *netserver.Frame) {
	in := n.intakes.Get().(*intake)
	in.run.Reset()
	in.conn, in.req = c, f.Req
	in.run.Bytes, in.run.Used = f.Bytes(), f.Len
	in.run.Ctx, in.run.Done = in, in.done
	l, err := n.fill(&in.run, c, f)
	if err != nil {
		c.AppendError(f.Req, wire.NoEntry, err)
		n.intakes.Put(in)
		return
	}
	mem := f.Hold()
	in.run.Mem = mem
	if err := l.queue.Append(&in.run, in.told); err != nil {
		c.AppendError(f.Req, wire.NoEntry, err)
		mem.Drop()
		n.intakes.Put(in)
	}
}

// fill describes the frame's entries as the run's blocks. A batch that doesn't
// fit its segment is refused by itself; a frame that names no lane, or two, as a
// whole.
func (n *Node) fill(r *segfile.Run, c *netserver.Conn, f *netserver.Frame) (*lane, error) {
	var l *lane
	it := wire.Entries(f.Bytes()[:f.Len], f.Aux)
	for it.Next() {
		a, _ := c.Handle(it.Handle).(*attachment)
		if a == nil {
			return nil, fmt.Errorf("node: entry %d: handle %d was never attached on this connection: %w", len(r.Blocks), it.Handle, redoubt.ErrInvalid)
		}
		if l == nil {
			l = a.lane
		} else if l != a.lane {
			return nil, fmt.Errorf("node: entry %d is for lane %d, those before it for lane %d: one frame, one lane: %w",
				len(r.Blocks), a.lane.index, l.index, redoubt.ErrInvalid)
		}
		b := r.Add()
		b.Seg, b.Off, b.Len, b.Kind = a.seg, it.Off, len(it.Batch), segfile.BlockRedo
		if b.Head, b.Err = a.seg.CheckBatch(it.Batch); b.Err != nil {
			b.Kind = segfile.BlockVoid
		}
	}
	if err := it.Err(); err != nil || l == nil {
		return nil, fmt.Errorf("node: APPEND frame with %d entries: %w: %w", f.Aux, err, redoubt.ErrInvalid)
	}
	return l, nil
}

// end is the run's Done: it tells the client what was refused. What was taken is
// acknowledged through the segments' SCLs.
func (in *intake) end(r *segfile.Run, err error) {
	if err != nil {
		in.conn.AppendError(in.req, wire.NoEntry, err)
	}
	for i := range r.Blocks {
		if e := r.Blocks[i].Err; e != nil {
			in.conn.AppendError(in.req, i, e)
		}
	}
	r.Mem.Drop()
	in.conn = nil
	in.frees.Put(in)
}
