package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
	"github.com/redoubt-storage/redoubt/wire"
)

// A nodeVariant is how the node is told to make appends durable.
type nodeVariant struct {
	name       string
	durability string
}

// Emulated drives take FUA and ignore it, so the sound node flushes. The planted
// one believes that a drive with a cache needs no flush: it acknowledges too early.
var nodeVariants = []nodeVariant{
	{name: "node", durability: "flush"},
	{name: "planted-plp", durability: "plp"},
}

// A Node is the redoubt binary with a client beside it. Its streams are segments,
// two on each device; the numbers of their records are LSNs.
type Node struct {
	nodeVariant

	node     *nodeProcess
	segments []*segment
}

// segmentsPerDevice share a log, so that one's records tear and trim beside the
// other's.
const segmentsPerDevice = 2

// A segment is one stream as Verify found it.
type segment struct {
	stream int
	lane   uint8
	exists bool
	found  wire.Description
	image  *image
}

func (g *segment) id(seed uint64) redoubt.SegmentID {
	return redoubt.SegmentID(identity("segment", seed, g.stream))
}

func (g *segment) volume(seed uint64) redoubt.VolumeID {
	return redoubt.VolumeID(identity("volume", seed, g.stream))
}

// pg is the number of the segment's protection group: not 0, so that page numbers
// in the volume differ from those in the group.
func (g *segment) pg() redoubt.PGNo { return redoubt.PGNo(g.stream + 1) }

func (e *Env) program() program {
	return program{path: cmp.Or(e.Redoubt, Redoubt), log: os.Stderr}
}

// Format formats the devices with small extents, so that the log wraps within
// seconds.
func (n *Node) Format(ctx context.Context, e *Env) error {
	out, err := e.program().run(ctx, append([]string{"format", "-extent-size", "1MiB"}, e.Paths...)...)
	if err != nil {
		return err
	}
	e.Logf("%s", strings.TrimSpace(string(out)))
	return nil
}

// start starts the node with everything tuned to happen soon: a log of a few
// extents, pages coalesced at the age of a moment. In every other life the log's
// writes are small and many at once, so that a cut finds more of them in flight.
func (n *Node) start(ctx context.Context, e *Env) (err error) {
	args := []string{"-devices", strings.Join(e.Paths, ","), "-durability", n.durability, "-memory", "96MiB",
		"-log-share", "0.2", "-coalesce-age", "300ms", "-coalesce-run", "16", "-full-timeout", "10m",
		"-frame-timeout", "10m", "-scrub-pause", "1s"}
	if (e.Seed+uint64(e.Life))%2 == 0 {
		args = append(args, "-log-depth", "6", "-log-write-max", "65536", "-log-write-eager", "4096")
	}
	n.node, err = e.program().startNode(ctx, cmp.Or(e.Listen, nodeAddr), args...)
	return err
}

// Verify checks the devices offline, starts the node, and compares the pages of
// every segment with what they must be as of its SCL, and some as of an older read
// point.
func (n *Node) Verify(ctx context.Context, e *Env) ([]uint64, error) {
	torn, _, err := e.program().check(ctx, e.Paths)
	if err != nil {
		return nil, err
	}
	e.See("torn", torn)
	if err := n.start(ctx, e); err != nil {
		return nil, err
	}
	conn, err := peer.Dial(ctx, cmp.Or(e.Listen, nodeAddr), peer.Options{Name: "verifier"})
	if err != nil {
		return nil, lost(err)
	}
	defer conn.Close()
	have := make([]uint64, segmentsPerDevice*len(e.Paths))
	n.segments = nil
	for i := range have {
		g := &segment{stream: i, lane: uint8(i / segmentsPerDevice), image: newImage(e.Seed, i)}
		n.segments = append(n.segments, g)
		if err := g.verify(ctx, e, conn); err != nil {
			return nil, lost(fmt.Errorf("guest: stream %d: %w", i, err))
		}
		have[i] = uint64(g.found.SCL)
	}
	if e.Phase == PhaseVerify {
		return have, n.shutDown(ctx, e)
	}
	return have, nil
}

// lost says that what went wrong between a node that is up and its client after
// a cut is a broken promise.
func lost(err error) error { return errors.Join(err, ErrLost) }

// shutDown stops the node and checks what it leaves behind.
func (n *Node) shutDown(ctx context.Context, e *Env) error {
	if err := n.node.stop(); err != nil {
		return err
	}
	_, clean, err := e.program().check(ctx, e.Paths)
	if err == nil && !clean {
		err = fmt.Errorf("guest: the node shut down, but not every device is marked clean: %w", ErrLost)
	}
	return err
}

// verify finds a segment and reads all of it. One that is not there is empty; if
// it was ever acknowledged, the rule for all workloads speaks.
func (g *segment) verify(ctx context.Context, e *Env, conn *peer.Conn) error {
	at, err := conn.Attach(ctx, &wire.Attach{Segment: g.id(e.Seed), Volume: g.volume(e.Seed), VolumeEpoch: epoch(e.Life), MembershipEpoch: 1})
	if errors.Is(err, redoubt.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	d := at.Description
	g.exists, g.found = true, d
	e.Logf("stream %d: SCL %#x, highest %#x, floor %#x, coalesced %#x, trimmed %#x, unknown %v above %#x, truncation %v",
		g.stream, d.SCL, d.Highest, d.Floor, d.Coalesced, d.Trimmed, d.Unknown, d.UnknownAbove, d.Truncation)
	g.see(e)
	if d.Unknown == wire.UnknownCorrupt {
		return fmt.Errorf("records above %#x are corrupt, though only the power went", d.UnknownAbove)
	}
	known := e.history(g.stream)
	if low := max(d.Floor, d.Coalesced, 1); low < d.SCL {
		r := rand.New(rand.NewPCG(e.Seed, uint64(d.SCL)))
		point := low + redoubt.LSN(r.Uint64N(uint64(d.SCL-low)))
		g.image.advance(known, point)
		if err := g.compare(ctx, e, conn, at.Handle, point, somePages(r)); err != nil {
			return err
		}
		e.See("older", 1)
	}
	if d.SCL == 0 {
		return nil
	}
	g.image.advance(known, d.SCL)
	return g.compare(ctx, e, conn, at.Handle, d.SCL, everyPage(e.Seed, d.SCL))
}

// everyPage lists the pages that are ever written, and a few of those that must
// still be zero.
func everyPage(seed uint64, scl redoubt.LSN) []uint32 {
	var pages []uint32
	for i := range hotPages {
		pages = append(pages, hotPage(i))
	}
	r := rand.New(rand.NewPCG(seed, uint64(scl)))
	for range 32 {
		pages = append(pages, uint32(r.IntN(pgPages)))
	}
	return pages
}

// somePages lists a few of the pages that are written.
func somePages(r *rand.Rand) []uint32 {
	var pages []uint32
	for _, i := range r.Perm(hotPages)[:32] {
		pages = append(pages, hotPage(i))
	}
	return pages
}

// see counts what the cut has met, so that a campaign can tell what it has proved.
func (g *segment) see(e *Env) {
	count := func(what string, is bool) {
		if is {
			e.See(what, 1)
		}
	}
	count("gaps", g.found.Highest > g.found.SCL)
	count("coalesced", g.found.Coalesced > 0)
	count("trimmed", g.found.Trimmed > 0)
	count("truncated", g.found.Truncation.From > 0)
}

// compare reads pages as of a point and compares them with the image, which stands
// there.
func (g *segment) compare(ctx context.Context, e *Env, conn *peer.Conn, handle uint32, point redoubt.LSN, pages []uint32) error {
	most := int(conn.Welcome().MaxPages)
	buf := make([]byte, most*redoubt.PageSize)
	for len(pages) > 0 {
		n := min(most, len(pages))
		r := &peer.ReadRequest{Handle: handle, Point: point, Pages: pages[:n], Buf: buf, Volume: g.volume(e.Seed), PG: g.pg(), PGPages: pgPages}
		if err := conn.ReadPages(ctx, r); err != nil {
			return err
		}
		for i, d := range r.Descs {
			want, last := g.image.page(d.Page)
			got := buf[i*redoubt.PageSize : (i+1)*redoubt.PageSize]
			if d.Code != wire.CodeOK || d.LSN != last || string(got) != string(want) {
				return fmt.Errorf("page %d as of %#x: %v, last record %#x, expected %#x, right bytes: %t",
					d.Page, point, d.Code, d.LSN, last, string(got) == string(want))
			}
		}
		pages = pages[n:]
	}
	return nil
}

// epoch is the volume epoch of a life's writer.
func epoch(life int) redoubt.Epoch { return redoubt.Epoch(max(life, 1)) }
