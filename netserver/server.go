package netserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-storage/redoubt"
	"github.com/redoubt-storage/redoubt/wire"
	"github.com/valyala/bytebufferpool"
)

// A Handler takes the frames of all connections. The frames of one connection
// come one after the other, from its reader goroutine; those of several come at
// the same time.
type Handler interface {
	// Append takes an APPEND frame, whose structure is right and whose batches
	// nobody has looked at. f is the server's and good until Append returns; its
	// bytes are good for as long as the handler has a hold (f.Hold). Append may
	// block: the client is then not read, which is back-pressure.
	Append(c *Conn, f *Frame)

	// Request takes any other frame of a client but HELLO and PING. The handler
	// answers exactly once, from any goroutine, through c. f and its bytes are
	// as in Append.
	Request(c *Conn, f *Frame)

	// Closed says that the connection is gone. No call for it follows; answers
	// and acks that are given to it are dropped.
	Closed(c *Conn)
}

// A Server accepts connections and serves them until Shutdown.
type Server struct {
	// Set by Serve, never changed.
	opts    Options
	ln      net.Listener
	readEnd int // reading stops here in a slab, unless a frame goes on
	stop    context.CancelFunc
	stopped context.Context // done when Shutdown begins
	unwatch chan struct{}   // closed when Shutdown ends

	// Shared, each with its own rule.
	counters counters
	clock    atomic.Int64 // coarse time, in ns since start; written by the watcher
	waiting  atomic.Int32 // readers that wait for a slab
	lines    atomic.Int32 // log lines since the watcher's last second

	accepting sync.WaitGroup // the accept goroutine
	watching  sync.WaitGroup // the watcher
	readers   sync.WaitGroup // connections that may still hand frames over
	serving   sync.WaitGroup // connections

	mu     sync.Mutex
	conns  map[*Conn]struct{}
	nextID uint64
}

// Serve starts to accept connections on ln, which belongs to the server from
// here on.
func Serve(ln net.Listener, o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts:    o,
		ln:      ln,
		readEnd: o.Pool.Size() - int(o.Welcome.MaxFrame),
		unwatch: make(chan struct{}),
		conns:   map[*Conn]struct{}{},
	}
	s.stopped, s.stop = context.WithCancel(context.Background())
	s.accepting.Add(1)
	s.watching.Add(1)
	go labelled("netserver accept", s.accept)
	go labelled("netserver watch", s.watch)
	return s, nil
}

// labelled runs f under a name that profiles show.
func labelled(name string, f func()) {
	pprof.Do(context.Background(), pprof.Labels("goroutine", name), func(context.Context) { f() })
}

// Addr returns the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// accept takes connections until the listener is closed.
func (s *Server) accept() {
	defer s.accepting.Done()
	delay := time.Duration(0)
	for {
		nc, err := s.ln.Accept()
		if err == nil {
			delay = 0
			s.admit(nc)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		// Out of descriptors, most likely: those who are served come first.
		s.counters.acceptErrors.Add(1)
		s.logf("accepting failed", "err", err)
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(delay):
		case <-s.stopped.Done():
		}
	}
}

// admit starts to serve a connection, or turns it away.
func (s *Server) admit(nc net.Conn) {
	s.counters.accepted.Add(1)
	c, err := s.newConn(nc)
	if err != nil {
		s.counters.refused.Add(1)
		if errors.Is(err, redoubt.ErrBusy) {
			turnAway(nc, err)
		}
		nc.Close()
		return
	}
	go labelled("netserver reader", c.run)
}

// turnAway tells the client why it is not served, if that costs nothing: the
// buffer of a new socket is empty, so the write doesn't wait.
func turnAway(nc net.Conn, err error) {
	e := wire.ErrorOf(wire.NoEntry, err)
	b := bytebufferpool.Get()
	defer bytebufferpool.Put(b)
	b.B = wire.AppendFrame(b.B[:0], wire.KindError, 0, 0, &e)
	nc.SetWriteDeadline(time.Now().Add(time.Second))
	nc.Write(b.B)
}

// newConn makes a connection known.
func (s *Server) newConn(nc net.Conn) (*Conn, error) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("netserver: %T is no TCP connection: %w", nc, redoubt.ErrInvalid)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("netserver: %w", err)
	}
	if err := s.tune(tcp); err != nil {
		return nil, err
	}
	c := newConn(s, tcp, raw)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Err() != nil {
		return nil, fmt.Errorf("netserver: %w", redoubt.ErrClosed)
	}
	if len(s.conns) >= s.opts.MaxConns {
		return nil, fmt.Errorf("netserver: %d connections are open, which is the limit: %w", len(s.conns), redoubt.ErrBusy)
	}
	s.nextID++
	c.id = s.nextID
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	s.readers.Add(1)
	return c, nil
}

// tune sets the options of a new socket.
func (s *Server) tune(tcp *net.TCPConn) error {
	err := tcp.SetNoDelay(true)
	if err == nil && s.opts.ReadBuffer > 0 {
		err = tcp.SetReadBuffer(s.opts.ReadBuffer)
	}
	if err == nil && s.opts.WriteBuffer > 0 {
		err = tcp.SetWriteBuffer(s.opts.WriteBuffer)
	}
	if err != nil {
		return fmt.Errorf("netserver: %w", err)
	}
	return nil
}

// remove forgets a connection, as its last act.
func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.counters.closed.Add(1)
	s.serving.Done()
}

// snapshot returns the connections there are.
func (s *Server) snapshot() []*Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// Reclaim takes a slab away from a connection that keeps one in the hope of
// further frames, and reports whether it found one. It serves as the Reclaim
// hook of a pool that others use as well.
func (s *Server) Reclaim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns { // in no particular order, so nobody is robbed for ever
		if c.rob() {
			return true
		}
	}
	return false
}

// Shutdown stops accepting and reading, says BYE, waits until what was taken
// has been answered and the answers are on their way, and closes. When ctx is
// done first it cuts what is left and says so in its error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stop() // under the lock: newConn adds no connection from here on
	s.mu.Unlock()
	s.ln.Close()
	s.accepting.Wait()
	for _, c := range s.snapshot() {
		c.stopReading()
	}
	err := wait(ctx, &s.readers)
	if err == nil && s.opts.Drain != nil {
		s.opts.Drain(ctx)
	}
	for _, c := range s.snapshot() {
		c.drained()
	}
	if e := wait(ctx, &s.serving); err == nil {
		err = e
	}
	if err != nil {
		err = s.cut(err)
	}
	close(s.unwatch)
	s.watching.Wait()
	return err
}

// cut closes the connections that are left. Those whose reader is inside the
// handler end when the handler lets go of them.
func (s *Server) cut(cause error) error {
	left := s.snapshot()
	for _, c := range left {
		c.kill(errCut)
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.LingerTimeout)
	defer cancel()
	if wait(ctx, &s.serving) != nil {
		return fmt.Errorf("netserver: shutdown: %d connections are still inside the handler: %w", len(s.snapshot()), cause)
	}
	return fmt.Errorf("netserver: shutdown: %d connections were cut: %w", len(left), cause)
}

// wait waits for wg until ctx is done. The goroutine in between ends with wg.
func wait(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go labelled("netserver shutdown", func() {
		wg.Wait()
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// logf writes a log line, unless there were too many within the second: a flood
// of bad clients shall not become a flood of lines. The watcher says how many
// it kept back.
func (s *Server) logf(msg string, args ...any) {
	if s.lines.Add(1) <= maxLines {
		s.opts.Log.Warn("netserver: "+msg, args...)
	}
}
