package main

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/peer"
)

// envInt returns a number from the environment: "make crash" sets them.
func envInt(t *testing.T, name string, def int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, v, err)
	}
	return n
}

// The real binary under SIGKILL, at a random moment of its work, again and again,
// while a client writes with many frames in flight and PGMRPL moving. After each:
// check finds no damage, every acknowledged record is there, every page is right.
func TestTheNodeMayBeKilledAtAnyMoment(t *testing.T) {
	rounds := envInt(t, "REDOUBT_KILL_ROUNDS", 5)
	seed := envInt(t, "REDOUBT_KILL_SEED", int(time.Now().UnixNano()&0xffffff))
	t.Logf("to repeat: REDOUBT_KILL_SEED=%d REDOUBT_KILL_ROUNDS=%d go test ./cmd/redoubt -run %s", seed, rounds, t.Name())
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	bin := buildBinary(t)
	devices := formatFiles(t, bin, 3, "24MiB")
	var streams []*stream
	for i := range 6 {
		streams = append(streams, newStream(redoubt.PGNo(i), uint8(i%3), 100+60*i))
	}
	var total redoubt.LSN
	for round := range rounds {
		engine := []string{"auto", "sync"}[round%2]
		p, err := startProcess(t, bin, devices, "-io-engine", engine, "-coalesce-age", "20ms")
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		runUntilKilled(t, p, streams, 1+rnd.IntN(1500))
		wantClean(t, bin, "of a killed node", devices)
	}
	p, err := startProcess(t, bin, devices)
	if err != nil {
		t.Fatal(err)
	}
	c, err := peer.Dial(t.Context(), p.addr, peer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		if err := s.attach(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		s.verify(t, c)
		total += s.acked
	}
	c.Close()
	p.stop()
	wantClean(t, bin, "after a clean shutdown", devices)
	if total < redoubt.LSN(rounds) {
		t.Fatalf("%d records in %d rounds: the test wrote nothing", total, rounds)
	}
	t.Logf("%d records survived %d kills", total, rounds)
}

// A session is one connection's writing, until the node is killed.
type session struct {
	mu     sync.Mutex
	moved  *sync.Cond
	acks   int
	killAt int
	down   bool
	byH    map[uint32]*stream
}

// runUntilKilled checks what a node has, writes to it, and kills it when the
// client has received so many acks.
func runUntilKilled(t *testing.T, p *process, streams []*stream, acks int) {
	t.Helper()
	x := &session{killAt: acks, byH: map[uint32]*stream{}}
	x.moved = sync.NewCond(&x.mu)
	c, err := peer.Dial(t.Context(), p.addr, peer.Options{
		OnAck: func(h uint32, scl redoubt.LSN) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.byH[h].acked = max(x.byH[h].acked, scl)
			if x.acks++; x.acks == x.killAt {
				_ = p.cmd.Process.Kill()
			}
			x.moved.Broadcast()
		},
		OnError: func(_ uint64, _ int, err error) { t.Errorf("an append was refused: %v", err) },
		OnDown: func(error) {
			x.mu.Lock()
			defer x.mu.Unlock()
			x.down = true
			x.moved.Broadcast()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range streams {
		if err := s.attach(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		s.verify(t, c)
		x.mu.Lock()
		x.byH[s.at.Handle] = s
		x.mu.Unlock()
	}
	buf := make([]byte, 256<<10)
	for i := 0; x.room(streams[i%len(streams)]); i++ {
		s := streams[i%len(streams)]
		x.mu.Lock()
		frame := s.frame(buf, int(c.Welcome().Align), 1+i%7)
		x.mu.Unlock()
		if err := c.Append(frame); err != nil {
			break
		}
	}
	<-c.Done()
	<-p.done
}

// room waits until a stream has few enough frames in flight, and reports false
// when the connection has ended.
func (x *session) room(s *stream) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	for !x.down && s.sent-s.acked > 64 {
		x.moved.Wait()
	}
	return !x.down
}
