package bench

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
)

// A survivor is what one segment says to a new writer, after it was fenced:
// what it is, and which records it holds completely above a VDL that somebody
// was told.
type survivor struct {
	desc wire.Description
	held []wire.Held
}

// newestTruncation returns the range of the newest epoch that any segment
// knows. An older one doesn't count any more: its writer's successor told every
// segment a VDL that isn't below it before it told them of its own range.
func newestTruncation(all []survivor) redoubt.Truncation {
	var t redoubt.Truncation
	for i := range all {
		if d := all[i].desc.Truncation; d.Epoch > t.Epoch {
			t = d
		}
	}
	return t
}

// toldVDL returns the highest VDL that any segment was told: the floor of every
// recovery.
func toldVDL(all []survivor) redoubt.LSN {
	var v redoubt.LSN
	for i := range all {
		v = max(v, all[i].desc.VDL)
	}
	return v
}

// recoveryPoint computes VCL and VDL of a volume of one copy. LSNs are dense, so
// VCL is reached where the first one is missing that no segment holds at or
// below its SCL; only the range of the newest truncation is jumped over. (What
// may still stand in it, on a segment that wasn't told, ends the walk: then the
// writer who truncated never came to write.)
func recoveryPoint(all []survivor) (vcl, vdl redoubt.LSN) {
	t := newestTruncation(all)
	vdl = toldVDL(all)
	var held []wire.Held
	for i := range all {
		for _, h := range all[i].held {
			if h.LSN > vdl && h.LSN <= all[i].desc.SCL {
				held = append(held, h)
			}
		}
	}
	slices.SortFunc(held, func(a, b wire.Held) int { return cmp.Compare(a.LSN, b.LSN) })
	vcl = vdl
	for _, h := range held {
		next := vcl + 1
		if next > t.From && next <= t.To {
			next = t.To + 1
		}
		if h.LSN != next {
			break
		}
		if vcl = h.LSN; h.CPL {
			vdl = vcl
		}
	}
	return vcl, vdl
}

// truncationAbove returns the range that a new writer makes void: (VDL, VDL+LAL],
// or more if the writer before it began behind a range above VDL and then
// committed nothing. Told again after it was cut in the middle, it is the same
// range.
func truncationAbove(vdl, lal redoubt.LSN, epoch redoubt.Epoch, all []survivor) redoubt.Truncation {
	before := newestTruncation(all)
	to := vdl + lal
	if before.To > vdl {
		highest := redoubt.LSN(0)
		for i := range all {
			highest = max(highest, all[i].desc.Highest)
		}
		if to = max(to, before.To); highest > before.To {
			to = max(to, before.To+lal)
		}
	}
	return redoubt.Truncation{Epoch: epoch, From: vdl, To: to}
}

// judgeUnknown decides what UNKNOWN means for a volume of one copy. Corrupt:
// acknowledged records may be among what is missing, and nobody else has them.
// Torn: nothing says that it was acknowledged, and there is nobody to ask.
func judgeUnknown(all []survivor) (warnings []string, err error) {
	for i := range all {
		switch d := &all[i].desc; d.Unknown {
		case wire.UnknownNone:
		case wire.UnknownTorn:
			warnings = append(warnings, fmt.Sprintf("PG %d: a write above LSN %d was torn; it is taken as never acknowledged, since the volume has one copy", d.PG, d.UnknownAbove))
		default:
			return nil, fmt.Errorf("segment %v, PG %d: acknowledged records above LSN %d may be damaged (%v), and there is no other copy: "+
				"run \"redoubt check\" on the devices of the node: %w", d.Segment, d.PG, d.UnknownAbove, d.Unknown, redoubt.ErrCorrupt)
		}
	}
	return warnings, nil
}
