package segfile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/slab"
)

// RecoveryInfo is what Open found on the device.
type RecoveryInfo struct {
	Extents  int    // of the log that were read
	Bytes    int64  // that they have
	Runs     int    // whole ones
	Blocks   int    // whole ones
	Segments int    // opened
	End      uint64 // where the log ended
	Witness  uint64 // everything below had been acknowledged
	Holes    []Hole // that no recovery before had judged
	Damage   []Damage
}

// Damage is something on the device that is not as it was written.
type Damage struct {
	Segment redoubt.SegmentID // zero: it isn't known whose
	Offset  int64             // on the device, bytes; -1: not at one place
	Err     error
}

// tagState is what the log says of one segment.
type tagState struct {
	root      []byte // the newest root's content
	rootPos   uint64
	state     segState // the newest by version
	head      mapHead  // maxima of the map blocks
	overlay   map[uint32]MapChange
	blocks    []recoveredBlock
	tombstone uint64
	bad       []recoveredBlock // whose content fails its sum
}

type recoveredBlock struct {
	blockRef
	ref foundBlock // without content
}

// A recoverer builds a store from what a scan finds.
type recoverer struct {
	s        *Store
	scan     scanner
	tags     map[uint32]*tagState
	restarts []restart
	restPos  []uint64
	info     RecoveryInfo
	maxTag   uint32
	changed  []*Segment // whose state must be written down
}

// Open recovers the log and the segments of a device. cleanEnd is where the
// log ended at a clean shutdown, 0 if there was none. Unless the store is opened
// read-only, the log is ready to go on when Open returns.
func Open(dev Device, opts Options, cleanEnd uint64) (*Store, error) {
	if err := opts.setDefaults(dev); err != nil {
		return nil, err
	}
	s := &Store{opts: opts, dev: dev, seed: newSeed(opts.Device), segs: map[redoubt.SegmentID]*Segment{}, nextTag: 1,
		slots: newSlotTable(dev.ExtentSize())}
	s.log = hotLog{seed: s.seed, blockSize: int64(dev.BlockSize()), extentSize: dev.ExtentSize(), offset: dev.Offset}
	r := &recoverer{s: s, tags: map[uint32]*tagState{}}
	spares, err := r.scanLog(cleanEnd)
	if err != nil {
		return nil, err
	}
	if !opts.ReadOnly {
		// Read-only opening has no index, and needs none.
		s.arena = newRecArena(opts.MaxRecords + opts.MaxRecords/4)
	}
	fresh := r.judge()
	if err := r.openSegments(); err != nil {
		return nil, err
	}
	r.markUnknown(fresh)
	s.nextTag = r.maxTag + 1
	s.recovery = r.info
	if opts.ReadOnly {
		return s, nil
	}
	if err := r.begin(spares); err != nil {
		return nil, err
	}
	return s, nil
}

// scanLog reads the log's extents. It returns those at its end in which nothing
// was written yet.
func (r *recoverer) scanLog(cleanEnd uint64) (spares []blockdev.Extent, err error) {
	s := r.s
	var exts []blockdev.Extent
	for _, e := range s.dev.Extents() {
		r.maxTag = max(r.maxTag, e.Owner)
		if e.Role == blockdev.RoleLog {
			exts = append(exts, e)
		}
	}
	slices.SortFunc(exts, func(a, b blockdev.Extent) int { return compareLSN(redoubt.LSN(a.Seq), redoubt.LSN(b.Seq)) })
	r.scan = scanner{seed: s.seed, blockSize: s.dev.BlockSize(), visit: r.visit}
	pool, err := slab.New(slab.Options{Name: "recovery", Size: int(s.dev.ExtentSize()), Count: 1})
	if err != nil {
		return nil, fmt.Errorf("segfile: memory for recovery: %w", err)
	}
	defer pool.Close()
	buf := pool.TryGet()
	defer buf.Drop()
	used := 0
	for i, e := range exts {
		base := s.log.base(e)
		before := r.scan.end
		alive, err := r.scanExtent(e, base, buf.Bytes())
		if err != nil {
			return nil, err
		}
		if !alive {
			continue
		}
		if before != 0 && before < base {
			r.scan.insertHole(before, base)
		}
		used = i + 1
	}
	r.info.Extents, r.info.Bytes = len(exts), int64(len(exts))*s.dev.ExtentSize()
	s.log.exts = slices.Clone(exts[:used])
	s.log.off = s.log.extentSize // whatever stands there, the log goes on in a fresh extent
	if cleanEnd > r.scan.end {
		r.scan.addHole(r.scan.end, cleanEnd)
		r.scan.witness = max(r.scan.witness, cleanEnd)
		r.scan.end = cleanEnd
	}
	r.info.End, r.info.Witness, r.info.Runs, r.info.Blocks = r.scan.end, r.scan.witness, r.scan.runs, r.scan.blocks
	return exts[used:], nil
}

// scanExtent reads and scans one extent. What can't be read is a hole.
func (r *recoverer) scanExtent(e blockdev.Extent, base uint64, b []byte) (bool, error) {
	off := r.s.dev.Offset(e.Index)
	err := r.s.dev.ReadAt(b, off)
	if err == nil {
		return r.scan.extent(e, base, b), nil
	}
	if errors.Is(err, redoubt.ErrClosed) || errors.Is(err, redoubt.ErrDeviceFailed) {
		return false, err
	}
	r.damage(redoubt.SegmentID{}, off, fmt.Errorf("segfile: reading extent %d of the log: %w", e.Index, err))
	// Piece by piece: one bad sector must not cost the whole extent.
	step := r.s.dev.BlockSize() * 8
	for o := 0; o < len(b); o += step {
		n := min(step, len(b)-o)
		if r.s.dev.ReadAt(b[o:o+n], off+int64(o)) != nil {
			clear(b[o : o+n])
			binaryMark(b[o:], e.Gen, base+uint64(o))
		}
	}
	return r.scan.extent(e, base, b), nil
}

func (r *recoverer) damage(id redoubt.SegmentID, off int64, err error) {
	if len(r.info.Damage) < 10_000 {
		r.info.Damage = append(r.info.Damage, Damage{Segment: id, Offset: off, Err: err})
	}
}

func (r *recoverer) tag(t uint32) *tagState {
	ts := r.tags[t]
	if ts == nil {
		ts = &tagState{overlay: map[uint32]MapChange{}}
		r.tags[t] = ts
		r.maxTag = max(r.maxTag, t)
	}
	return ts
}

// visit takes in a whole block; they come in the order of their positions.
func (r *recoverer) visit(f foundBlock) {
	var err error
	switch f.kind {
	case BlockRestart:
		var rs restart
		if err = rs.parse(f.content); err == nil {
			r.restarts = append(r.restarts, rs)
			r.restPos = append(r.restPos, f.pos)
		}
	case BlockVoid:
	case BlockRedo:
		h := f.head
		f.content = nil
		ts := r.tag(f.tag)
		ts.blocks = append(ts.blocks, recoveredBlock{ref: f, blockRef: blockRef{first: h.First, last: h.Last, prev: h.Prev,
			epoch: h.Epoch, pos: f.pos + BlockHeaderSize, len: uint32(h.Len), count: uint32(h.Count)}})
	default:
		err = r.tag(f.tag).meta(f)
	}
	if err != nil {
		r.damage(redoubt.SegmentID{}, r.offset(f.pos), fmt.Errorf("%v block at position %d: %w", f.kind, f.pos, err))
		r.scan.addHole(f.pos, f.pos+uint64(blockSize(f.len)))
	}
}

func (ts *tagState) meta(f foundBlock) error {
	if f.kind == BlockMap {
		pages := uint32(redoubt.MaxPGPages)
		h, err := parseMapBlock(f.content, pages, func(c MapChange) { ts.overlay[c.Page] = c })
		ts.head.coalesced = max(ts.head.coalesced, h.coalesced)
		ts.head.vdl = max(ts.head.vdl, h.vdl)
		ts.head.floor = max(ts.head.floor, h.floor)
		return err
	}
	var st segState
	rest, err := st.parse(f.content)
	if err != nil {
		return err
	}
	if st.version >= ts.state.version {
		ts.state = st
	}
	switch f.kind {
	case BlockTombstone:
		ts.tombstone = f.pos
	case BlockRoot:
		ts.root, ts.rootPos = slices.Clone(rest), f.pos
		clear(ts.overlay)
	}
	return nil
}

// offset returns where a position lies on the device, or -1.
func (r *recoverer) offset(pos uint64) int64 {
	for _, e := range r.s.dev.Extents() {
		if e.Role == blockdev.RoleLog && e.Seq == pos/uint64(r.s.dev.ExtentSize()) {
			return r.s.dev.Offset(e.Index) + int64(pos%uint64(r.s.dev.ExtentSize()))
		}
	}
	return -1
}

// judge decides on the holes: those that a recovery before has judged are left
// out, the others are torn or corrupt by the witness.
func (r *recoverer) judge() []Hole {
	var fresh []Hole
	for _, h := range r.scan.holes {
		if r.judged(h) {
			continue
		}
		h.Class = Torn
		if h.From < r.scan.witness {
			h.Class = Corrupt
		}
		fresh = append(fresh, h)
		if h.Class == Corrupt {
			r.damage(redoubt.SegmentID{}, r.offset(h.From), corruptf("log positions [%d, %d) are damaged, and had been acknowledged: what they held is UNKNOWN; "+
				"repair the device's segments from their peers", h.From, h.To))
		}
	}
	r.info.Holes = fresh
	return fresh
}

func (r *recoverer) judged(h Hole) bool {
	for i, rs := range r.restarts {
		if h.From >= rs.end && h.To <= r.restPos[i] {
			return true
		}
		for _, o := range rs.holes {
			if h.From >= o.From && h.To <= o.To {
				return true
			}
		}
	}
	return false
}
