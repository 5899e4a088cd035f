package netserver

import (
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/redoubt-storage/redoubt/wire"
)

// TestFlood opens and drops ten thousand connections, in every way there is to
// do that. The server stays up, its memory stays where it was, and no goroutine
// and no slab is left.
func TestFlood(t *testing.T) {
	const (
		conns   = 10000
		openers = 32
		bound   = 32 << 20 // bytes of heap in use at the worst moment, above the start
	)
	f := start(t, &fake{append: ackAll, request: attach}, func(o *Options) { o.MaxConns = 100 })
	before, goroutines := heapInUse(), runtime.NumGoroutine()
	long := appendFrame(t, 1, 100, 30000, 0)
	lying := damage(t, appendFrame(t, 1, 100, 300, 0), true, func(b []byte) { b[11] = 0x7f })
	var wg sync.WaitGroup
	var mu sync.Mutex
	worst := uint64(0)
	sample := func() {
		mu.Lock()
		defer mu.Unlock()
		worst = max(worst, heapInUse())
	}
	for i := range openers {
		wg.Go(func() {
			for n := i; n < conns; n += openers {
				if err := f.flood(n, long, lying); err != nil {
					t.Error(err)
					return
				}
				if n%1000 == 0 {
					sample()
				}
			}
		})
	}
	wg.Wait()
	sample()
	if worst > before+bound {
		t.Errorf("heap in use grew from %d to %d bytes", before, worst)
	}
	until(t, "all connections are gone", func() bool {
		s := f.srv.Stats()
		return s.Accepted == conns && s.Active == 0
	})
	until(t, "all slabs are free", func() bool { return f.pool.Free() == f.pool.Cap() })
	until(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines })
	c := f.dial()
	c.attach()
	s := f.srv.Stats()
	t.Logf("%+v", s)
	if s.Refused == 0 || s.BadHellos == 0 || s.BadFrames == 0 {
		t.Errorf("the flood tried too little: %+v", s)
	}
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// flood is one connection that is dropped, in the nth way. Without lingering
// close ends it with a reset, so that the test leaves no port in TIME_WAIT.
func (f *fixture) flood(n int, long, lying []byte) error {
	nc, err := net.Dial("tcp", f.srv.Addr().String())
	if err != nil {
		return err
	}
	defer nc.Close()
	tcp := nc.(*net.TCPConn)
	tcp.SetLinger(0)
	c := &client{t: f.t, conn: tcp}
	hello := helloFrame()
	switch n % 8 {
	case 0: // says nothing
	case 1:
		tcp.Write(hello[:n%500])
	case 2:
		tcp.Write([]byte("GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"))
	case 3: // leaves before the answer
		tcp.Write(hello)
	case 4: // leaves in the middle of a frame
		tcp.Write(hello)
		c.next()
		tcp.Write(long[:20000])
	case 5: // leaves without taking its answers
		tcp.Write(hello)
		c.next()
		for req := range uint64(20) {
			tcp.Write(request(wire.KindAttach, req, &wire.Attach{}))
		}
	case 6: // lies about a length
		tcp.Write(hello)
		c.next()
		tcp.Write(lying)
		c.next()
	case 7: // garbage behind a HELLO
		tcp.Write(hello)
		c.next()
		tcp.Write(make([]byte, 700))
		c.next()
	}
	return nil
}
