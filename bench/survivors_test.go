package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
	"pgregory.net/rapid"
)

// TestRecoveryScripts tells what segments say, and what a new writer makes of it.
func TestRecoveryScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/recovery", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd != "recover" {
				t.Fatalf("%s: no such command %q", d.Pos, d.Cmd)
			}
			return recoverScript(t, d)
		})
	})
}

// recover [lal=N] [epoch=N], one segment a line:
//
//	scl=N [vdl=N] [highest=N] [held=LSN,LSN!,...] [void=EPOCH:FROM-TO] [torn=N] [corrupt=N]
//
// where ! marks a CPL.
func recoverScript(t *testing.T, d *datadriven.TestData) string {
	lal, epoch := uint64(100), uint64(9)
	d.MaybeScanArgs(t, "lal", &lal)
	d.MaybeScanArgs(t, "epoch", &epoch)
	var all []survivor
	for line := range strings.Lines(d.Input) {
		s := survivor{desc: wire.Description{PG: redoubt.PGNo(len(all))}}
		for _, f := range strings.Fields(line) {
			k, v, _ := strings.Cut(f, "=")
			if err := s.say(k, v); err != nil {
				t.Fatalf("%s: %q: %v", d.Pos, f, err)
			}
		}
		s.desc.Highest = max(s.desc.Highest, s.desc.SCL)
		all = append(all, s)
	}
	var out strings.Builder
	warnings, err := judgeUnknown(all)
	for _, w := range warnings {
		fmt.Fprintf(&out, "warning: %s\n", w)
	}
	if err != nil {
		return fmt.Sprintf("stop, corrupt %v: %v\n", errors.Is(err, redoubt.ErrCorrupt), err)
	}
	vcl, vdl := recoveryPoint(all)
	x := truncationAbove(vdl, redoubt.LSN(lal), redoubt.Epoch(epoch), all)
	fmt.Fprintf(&out, "VCL %d VDL %d, epoch %d voids (%d, %d]\n", vcl, vdl, x.Epoch, x.From, x.To)
	return out.String()
}

func (s *survivor) say(k, v string) (err error) {
	lsn := func(p *redoubt.LSN) { _, err = fmt.Sscan(v, p) }
	switch k {
	case "scl":
		lsn(&s.desc.SCL)
	case "vdl":
		lsn(&s.desc.VDL)
	case "highest":
		lsn(&s.desc.Highest)
	case "void":
		x := &s.desc.Truncation
		_, err = fmt.Sscanf(v, "%d:%d-%d", &x.Epoch, &x.From, &x.To)
	case "torn":
		s.desc.Unknown = wire.UnknownTorn
		lsn(&s.desc.UnknownAbove)
	case "corrupt":
		s.desc.Unknown = wire.UnknownCorrupt
		lsn(&s.desc.UnknownAbove)
	case "held":
		for _, one := range strings.Split(v, ",") {
			num, isCPL := strings.CutSuffix(one, "!")
			h := wire.Held{CPL: isCPL}
			if _, err := fmt.Sscan(num, &h.LSN); err != nil {
				return err
			}
			s.held = append(s.held, h)
		}
	default:
		err = errors.New("no such field")
	}
	return err
}

// A modelSegment is a segment as a list of records with epochs: what is held,
// which ranges are void.
type modelSegment struct {
	records []modelRecord // in LSN order
	vdl     redoubt.LSN
	trunc   redoubt.Truncation
	epoch   redoubt.Epoch
}

type modelRecord struct {
	lsn redoubt.LSN
	cpl bool
}

// truncate does what a segment does on TRUNCATE.
func (g *modelSegment) truncate(x redoubt.Truncation) {
	g.records = slices.DeleteFunc(g.records, func(r modelRecord) bool { return r.lsn > x.From && r.lsn <= x.To })
	g.trunc = x
}

// survivors is what the segments would say, if TAIL listed everything above the
// highest VDL told.
func modelSurvivors(segs []*modelSegment) []survivor {
	all := make([]survivor, len(segs))
	for i, g := range segs {
		all[i].desc.VDL, all[i].desc.Truncation = g.vdl, g.trunc
	}
	told := toldVDL(all)
	for i, g := range segs {
		for _, r := range g.records {
			all[i].desc.SCL = r.lsn
			all[i].desc.Highest = r.lsn
			if r.lsn > told {
				all[i].held = append(all[i].held, wire.Held{LSN: r.lsn, CPL: r.cpl})
			}
		}
	}
	return all
}

// TestRecoveryNeverLosesACommit lets writer after writer open the volume, write
// a while and die: between any two records, with any part of what is in flight
// lost on each segment, or in the middle of its own recovery. A commit that was
// acknowledged is in every later VDL; no LSN is ever given out twice while a
// record of its earlier life stands; and LSNs at or below VDL have no hole that
// isn't void.
func TestRecoveryNeverLosesACommit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &recoveryModel{t: t}
		for range rapid.IntRange(1, 4).Draw(t, "segments") {
			m.segs = append(m.segs, &modelSegment{})
		}
		for range rapid.IntRange(1, 8).Draw(t, "writers") {
			m.life()
		}
	})
}

type recoveryModel struct {
	t     *rapid.T
	segs  []*modelSegment
	epoch redoubt.Epoch
	acked redoubt.LSN // highest VDL that any writer acknowledged
}

const modelLAL = 20

// life is one writer: it recovers, perhaps dies in the middle of that, writes,
// and dies.
func (m *recoveryModel) life() {
	t := m.t
	m.epoch++
	for _, g := range m.segs {
		g.epoch = m.epoch
	}
	all := modelSurvivors(m.segs)
	_, vdl := recoveryPoint(all)
	if vdl < m.acked {
		t.Fatalf("VDL %d after %d was acknowledged", vdl, m.acked)
	}
	x := truncationAbove(vdl, modelLAL, m.epoch, all)
	if x.From != vdl || x.To < vdl+modelLAL {
		t.Fatalf("VDL %d: %+v", vdl, x)
	}
	reach := rapid.IntRange(0, 2*len(m.segs)).Draw(t, "segments told before the crash")
	for i, g := range rapid.Permutation(m.segs).Draw(t, "order") {
		if i == reach {
			return
		}
		g.vdl = max(g.vdl, vdl)
		g.truncate(x)
	}
	for _, g := range m.segs {
		for _, r := range g.records {
			if r.lsn > vdl {
				t.Fatalf("record %d stands above VDL %d when %d is given out next: it isn't void in (%d, %d]", r.lsn, vdl, x.To+1, x.From, x.To)
			}
		}
	}
	m.write(x.To, vdl)
}

// write hands out LSNs from base+1 on, loses a suffix of each segment's, and
// acknowledges what is durable.
func (m *recoveryModel) write(base, vdl redoubt.LSN) {
	t := m.t
	n := rapid.IntRange(0, modelLAL).Draw(t, "records")
	where := make([]int, n)
	added := make([]int, len(m.segs))
	for i := range n {
		where[i] = rapid.IntRange(0, len(m.segs)-1).Draw(t, "segment")
		added[where[i]]++
	}
	keep := make([]int, len(m.segs))
	for i, k := range added {
		keep[i] = rapid.IntRange(0, k).Draw(t, "durable")
	}
	whole, acked := true, vdl
	for i, s := range where {
		lsn, isCPL := base+redoubt.LSN(i)+1, rapid.Bool().Draw(t, "cpl")
		if keep[s] == 0 {
			whole = false
			continue
		}
		keep[s]--
		m.segs[s].records = append(m.segs[s].records, modelRecord{lsn, isCPL})
		if whole && isCPL {
			acked = lsn
		}
	}
	// The writer may have seen fewer acks than there were.
	if acked > vdl && rapid.Bool().Draw(t, "acknowledged") {
		m.acked = acked
		for _, g := range m.segs {
			if rapid.Bool().Draw(t, "told") {
				g.vdl = max(g.vdl, acked)
			}
		}
	}
}
