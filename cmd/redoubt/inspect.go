package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/blockdev"
	"github.com/redoubt-storage/redoubt/redo"
	"github.com/redoubt-storage/redoubt/segfile"
	"github.com/redoubt-storage/redoubt/slab"
)

type inspector struct {
	segment *redoubt.SegmentID
	log     bool
	page    int64
	hex     bool
	json    bool
}

func inspect(_ context.Context, args []string) error {
	fs := newFlags("inspect", "Show what is on the devices of a node that isn't running: superblock, extents, segments;\n"+
		"with -log every block of the hot log; with -segment and -page the state of one page.\n"+
		"Nothing is changed.\n\n"+
		"  redoubt inspect d0 d1\n  redoubt inspect -log -segment 0123... d0\n  redoubt inspect -segment 0123... -page 17 -hex d0")
	var in inspector
	segment := fs.String("segment", "", "show this segment only, an ID of 32 hex digits")
	fs.BoolVar(&in.log, "log", false, "list the blocks of the hot log")
	fs.Int64Var(&in.page, "page", -1, "show this page of the segment, an index inside its protection group")
	fs.BoolVar(&in.hex, "hex", false, "with -page: dump the page's bytes")
	fs.BoolVar(&in.json, "json", false, "print JSON, one object a line")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *segment != "" {
		id, err := redoubt.ParseID(*segment)
		if err != nil {
			return err
		}
		in.segment = (*redoubt.SegmentID)(&id)
	}
	if fs.NArg() == 0 || in.page >= 0 && in.segment == nil {
		return fmt.Errorf("name the devices, and with -page the -segment: redoubt inspect [-segment ID] [-log] [-page N] PATH")
	}
	for _, path := range fs.Args() {
		if err := in.device(path); err != nil {
			return err
		}
	}
	return nil
}

// show prints one thing, as text or as a line of JSON.
func (in *inspector) show(kind string, v any, text string, args ...any) {
	if !in.json {
		fmt.Printf(text+"\n", args...)
		return
	}
	// Standard output that can't be written has nobody to be told.
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{kind: v})
}

func (in *inspector) device(path string) error {
	dev, err := blockdev.Open(path, blockdev.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer dev.Close()
	sb := dev.Super()
	roles := map[blockdev.Role]int{}
	for _, e := range dev.Extents() {
		roles[e.Role]++
	}
	in.show("device", sb, "%s: device %v, %d of %d of node %v, cluster %v\n  %s in %d extents of %s: %d log, %d pages, %d free; logical block %d, generation %d, clean end %d",
		path, sb.Device, sb.Position, sb.Count, sb.Node, sb.Cluster, sizeText(sb.Size), sb.ExtentCount, sizeText(sb.ExtentSize),
		roles[blockdev.RoleLog], roles[blockdev.RolePages], roles[blockdev.RoleFree], sb.BlockSize, sb.Generation, sb.Clean)
	store, free, err := openReadOnly(dev)
	if err != nil {
		return err
	}
	defer free()
	segs := store.Segments()
	slices.SortFunc(segs, func(a, b *segfile.Segment) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	tags := map[uint32]*segfile.Segment{}
	for _, g := range segs {
		tags[g.Tag()] = g
		if in.segment == nil || *in.segment == g.ID {
			in.showSegment(store, g)
		}
		if in.page >= 0 && *in.segment == g.ID {
			if err := in.showPage(dev, store, g); err != nil {
				return err
			}
		}
	}
	if in.log {
		return in.showLog(dev, tags)
	}
	return nil
}

func (in *inspector) showSegment(store *segfile.Store, g *segfile.Segment) {
	i := store.Info(g)
	in.show("segment", i, "  segment %v tag %d: volume %v PG %d, %v, %d pages of %d\n    SCL %d, highest %d, VDL %d, PGMRPL %d, coalesced %d, %d blocks and %d bytes of live log\n    epochs: volume %d, membership %d, geometry %d; truncation %v; unknown: %v above %d",
		g.ID, g.Tag(), g.Volume, g.PG, g.Kind, i.PageCount, g.Pages, i.SCL, i.Highest, i.VDL, i.Floor, i.Coalesced, i.Blocks, i.LogBytes,
		i.Epoch, i.Membership, i.Geometry, i.Truncation, i.Unknown.Reason, i.Unknown.Above)
}

func (in *inspector) showPage(dev *blockdev.Device, store *segfile.Store, g *segfile.Segment) error {
	if in.page >= int64(g.Pages) {
		return fmt.Errorf("page %d of a segment with %d", in.page, g.Pages)
	}
	st, err := store.PageState(g, uint32(in.page))
	if err != nil {
		return err
	}
	if st.Offset < 0 {
		in.show("page", st, "    page %d: no version on disk", st.Page)
		return nil
	}
	pool, err := slab.New(slab.Options{Name: "page", Size: redoubt.PageSize, Count: 1})
	if err != nil {
		return err
	}
	defer pool.Close()
	buf := pool.TryGet()
	defer buf.Drop()
	if err := dev.ReadAt(buf.Bytes(), st.Offset); err != nil {
		return err
	}
	sum := redo.PageSum(g.Volume, g.PageNo(st.Page), st.LSN, buf.Bytes())
	verdict := "ok"
	if sum != st.Sum {
		verdict = fmt.Sprintf("DAMAGED, its bytes have %08x", sum)
	}
	in.show("page", st, "    page %d (volume page %d): LSN %d, slot %d at byte %d, sum %08x %s", st.Page, g.PageNo(st.Page), st.LSN, st.Slot-1, st.Offset, st.Sum, verdict)
	if in.hex {
		fmt.Print(hex.Dump(buf.Bytes()))
	}
	return nil
}

func (in *inspector) showLog(dev *blockdev.Device, tags map[uint32]*segfile.Segment) error {
	holes, err := segfile.WalkLog(dev, dev.Super().Device, func(e segfile.LogEntry) {
		g := tags[e.Tag]
		if in.segment != nil && (g == nil || g.ID != *in.segment) {
			return
		}
		switch e.Kind {
		case segfile.BlockRedo:
			in.show("block", e, "  %12d at byte %12d: redo tag %d, LSNs %d to %d, %d records, %d bytes, after LSN %d, epoch %d",
				e.Position, e.Offset, e.Tag, e.Batch.First, e.Batch.Last, e.Batch.Count, e.Bytes, e.Batch.Prev, e.Batch.Epoch)
		default:
			in.show("block", e, "  %12d at byte %12d: %v tag %d, %d bytes", e.Position, e.Offset, e.Kind, e.Tag, e.Bytes)
		}
	})
	for _, h := range holes {
		in.show("hole", h, "  %12d to %d: nothing whole", h.From, h.To)
	}
	return err
}
