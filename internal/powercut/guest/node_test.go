package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/redo"
)

// The workload of the real binary is tested on files, with SIGKILL in the place of a
// cut: that takes nothing away, so here it is the verifier that is on trial.

// buildRedoubt builds the binary once for all tests.
var buildRedoubt = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "powercut-guest")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "redoubt")
	out, err := exec.Command("go", "build", "-o", path, "../../../cmd/redoubt").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return path, err
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := buildRedoubt(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// nodeHost is the host of a node's lives: it remembers what it was told.
type nodeHost struct {
	t     *testing.T
	env   Env
	mu    sync.Mutex
	acked []uint64
	seen  map[string]uint64
}

func newNodeHost(t *testing.T) *nodeHost {
	t.Helper()
	path, err := buildRedoubt()
	if err != nil {
		t.Fatal(err)
	}
	h := &nodeHost{t: t, acked: make([]uint64, 4), seen: make(map[string]uint64)}
	h.env = Env{Config: Config{Seed: 7}, Redoubt: path, Logf: t.Logf,
		See: func(what string, n uint64) { h.seen[what] += n }}
	for i := range 2 {
		file := filepath.Join(t.TempDir(), fmt.Sprintf("d%d", i))
		if err := os.WriteFile(file, make([]byte, 40<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		h.env.Paths = append(h.env.Paths, file)
	}
	if err := h.workload().Format(t.Context(), h.boot(PhaseFormat)); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *nodeHost) workload() *Node { return &Node{nodeVariant: nodeVariants[0]} }

// boot gives the environment of the next boot, whose node has a port of its own.
func (h *nodeHost) boot(phase string) *Env {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Close()
	e := h.env
	e.Phase, e.Listen = phase, l.Addr().String()
	return &e
}

// live boots, verifies, and loads until every stream has had so many more records
// acknowledged; then the node is killed.
func (h *nodeHost) live(records uint64) {
	h.t.Helper()
	ctx, kill := context.WithCancel(h.t.Context())
	defer kill()
	h.env.Life++
	e, w := h.boot(PhaseLoad), h.workload()
	have, err := w.Verify(ctx, e)
	if err == nil {
		err = judge(e.Streams, have)
	}
	if err != nil {
		h.t.Fatalf("life %d: %v", e.Life, err)
	}
	for len(h.env.Streams) < len(have) {
		h.env.Streams = append(h.env.Streams, Stream{})
	}
	for i := range h.env.Streams {
		h.env.Streams[i].Begin(e.Life, have[i])
	}
	e.Ack = func(stream int, n uint64) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.acked[stream] = max(h.acked[stream], n)
		if slices.Min(h.acked) >= uint64(firstLSN(e.Life))+records {
			kill()
		}
	}
	// A node that stands still tells where, and its end fails the load.
	watchdog := time.AfterFunc(time.Minute, func() { w.node.cmd.Process.Signal(syscall.SIGQUIT) })
	defer watchdog.Stop()
	if err := w.Load(ctx, e, have); err != nil && ctx.Err() == nil {
		h.t.Fatalf("life %d: %v", e.Life, err)
	}
	<-w.node.ended
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.env.Streams {
		h.env.Streams[i].Acked = h.acked[i]
	}
}

// verify boots for the verdict alone.
func (h *nodeHost) verify() error {
	ctx, kill := context.WithCancel(h.t.Context())
	defer kill()
	e, w := h.boot(PhaseVerify), h.workload()
	have, err := w.Verify(ctx, e)
	if err == nil {
		err = judge(e.Streams, have)
	}
	kill()
	if w.node != nil {
		<-w.node.ended
	}
	return err
}

func TestNodeKeepsItsPromisesOverLives(t *testing.T) {
	h := newNodeHost(t)
	for range 3 {
		h.live(1500)
	}
	if err := h.verify(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"coalesced", "trimmed", "truncated", "older"} {
		if h.seen[what] == 0 {
			t.Errorf("three lives, and no boot has met %q: %v", what, h.seen)
		}
	}
	for i, s := range h.env.Streams {
		if n := Records("node", s); n < 4500 {
			t.Errorf("stream %d: %d records acknowledged in %v, want 4500 or more", i, n, s)
		}
	}
}

// Each wrong thing is a verdict, not trouble.
func TestNodeVerifierFindsWhatIsWrong(t *testing.T) {
	h := newNodeHost(t)
	h.live(300)
	sound := h.env
	for name, spoil := range map[string]func() (words string){
		"an ack that is not there": func() string {
			h.env.Streams[1].Acked += 1 << 10
			return "stream 1: acknowledged up to"
		},
		"other content": func() string {
			h.env.Streams[2].Lives[0].Life++ // whose records have other LSNs
			return "stream 2: page"
		},
		"segments that are gone": func() string {
			h.env.Seed++
			return "whole up to 0"
		},
		"a flipped bit": func() string {
			flip(t, h.env.Paths[1])
			return "check finds"
		},
		"no device": func() string {
			h.env.Paths[0] = h.env.Paths[1]
			return "check"
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.env = sound
			h.env.Streams, h.env.Paths = nil, copied(t, sound.Paths)
			for _, s := range sound.Streams {
				h.env.Streams = append(h.env.Streams, Stream{Acked: s.Acked, Lives: slices.Clone(s.Lives)})
			}
			words := spoil()
			if err := h.verify(); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), words) {
				t.Errorf("the verdict is %v, want one with %q", err, words)
			}
		})
	}
	h.env = sound
	if err := h.verify(); err != nil {
		t.Errorf("what nobody has spoiled: %v", err)
	}
}

func copied(t *testing.T, paths []string) []string {
	t.Helper()
	var all []string
	for i, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err := os.WriteFile(all[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// flip changes one bit of a batch in the middle of what the log holds.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	for at := 0; at < len(b); at += 512 {
		if bytes.HasPrefix(b[at:], []byte("RDR1")) {
			if runs++; runs == 5 {
				b[at+200] ^= 1
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatalf("%d runs in the log of %s: nothing to flip", runs, path)
}

// The model applies records by itself; package redo must agree with it, or one of
// the two is wrong.
func TestImageAgreesWithRedo(t *testing.T) {
	const records = 3000
	m := newImage(5, 1)
	m.advance(Stream{Lives: []Start{{Life: 1, From: 1}}}, firstLSN(1)+records)
	pages := make(map[uint32][]byte)
	kinds := make(map[redo.Kind]int)
	buf, room := make([]byte, maxChange), make([]byte, redoubt.MaxBatchBytes)
	prev := redoubt.LSN(0)
	for lsn := firstLSN(1) + 1; lsn <= firstLSN(1)+records; lsn++ {
		var b redo.Builder
		b.Reset(room, redoubt.VolumeID{}, 1, 1, prev)
		c := changeAt(5, 1, lsn, buf)
		if !c.add(&b, lsn, 0) {
			t.Fatalf("no room for %+v", c)
		}
		prev = lsn
		batch := b.Finish()
		head, err := redo.Verify(redoubt.VolumeID{}, batch)
		if err != nil {
			t.Fatal(err)
		}
		for it := redo.Records(batch, head); it.Next(); {
			kinds[it.Kind]++
			if it.Kind == redo.Mark {
				continue
			}
			if pages[it.Page] == nil {
				pages[it.Page] = make([]byte, redoubt.PageSize)
			}
			it.Apply(pages[it.Page])
		}
	}
	for page, want := range pages {
		if got, _ := m.page(page); !bytes.Equal(got, want) {
			t.Fatalf("page %d differs", page)
		}
	}
	if len(kinds) != 4 || len(pages) != hotPages {
		t.Errorf("kinds of records %v on %d pages: the content is poorer than it should be", kinds, len(pages))
	}
}

// A later life begins where it says, and what an earlier one had sent past that is
// not there.
func TestImageKnowsWhoWroteWhat(t *testing.T) {
	s := Stream{Lives: []Start{{Life: 1, From: 1}}}
	s.Begin(2, uint64(firstLSN(1))+10)
	s.Begin(4, uint64(firstLSN(1))+10) // life 2 had nothing acknowledged; life 3 did not get there
	s.Acked = uint64(firstLSN(4)) + 5
	if n := Records("node", s); n != 15 {
		t.Errorf("%d records, want 10 of life 1 and 5 of life 4", n)
	}
	m, by := newImage(1, 0), newImage(1, 0)
	m.advance(s, firstLSN(4)+5)
	for _, run := range [][2]redoubt.LSN{{firstLSN(1) + 1, 10}, {firstLSN(4) + 1, 5}} {
		for lsn := run[0]; lsn < run[0]+run[1]; lsn++ {
			by.apply(lsn, changeAt(1, 0, lsn, by.buf))
		}
	}
	if len(m.pages) != len(by.pages) || m.at != by.at {
		t.Fatalf("%d pages up to %#x, want %d up to %#x", len(m.pages), m.at, len(by.pages), by.at)
	}
	for page := range by.pages {
		got, at := m.page(page)
		if want, last := by.page(page); !bytes.Equal(got, want) || at != last {
			t.Errorf("page %d: last record %#x, want %#x", page, at, last)
		}
	}
}
