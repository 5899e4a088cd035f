package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveHTTP serves metrics, health, status and profiles.
func (n *Node) serveHTTP() error {
	if n.opts.HTTP == "-" {
		return nil
	}
	ln, err := net.Listen("tcp", n.opts.HTTP)
	if err != nil {
		return fmt.Errorf("node: metrics and health: %w", err)
	}
	n.httpAddr = ln.Addr()
	n.http = &http.Server{Handler: n.routes(), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := n.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.opts.Log.Error("the HTTP server ended", "err", err)
		}
	}()
	return nil
}

func (n *Node) routes() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), (*metrics)(n))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg}))
	mux.HandleFunc("GET /healthz", n.health)
	mux.HandleFunc("GET /status", n.status)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// health answers 200 while every device works, 503 with the reasons otherwise.
func (n *Node) health(w http.ResponseWriter, _ *http.Request) {
	var bad []string
	for _, l := range n.lanes {
		if err := l.store.Failed(); err != nil {
			bad = append(bad, fmt.Sprintf("lane %d (%s): %v", l.index, l.dev.Path(), err))
		}
	}
	if n.closing.Load() {
		bad = append(bad, "shutting down")
	}
	if len(bad) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, b := range bad {
			fmt.Fprintln(w, b)
		}
		return
	}
	fmt.Fprintln(w, "ok")
}

// Status is what GET /status answers.
type Status struct {
	Node    string       `json:"node"`
	Uptime  float64      `json:"uptime_s"`
	Lanes   []LaneStatus `json:"lanes"`
	SlabsMB int          `json:"slabs_mib"`
	FreeMB  int          `json:"slabs_free_mib"`
}

// LaneStatus is one device's part of a Status.
type LaneStatus struct {
	Lane       int     `json:"lane"`
	Path       string  `json:"path"`
	Engine     string  `json:"engine"`
	Durability string  `json:"durability"`
	Segments   int     `json:"segments"`
	LogExtents int     `json:"log_extents"`
	MaxLog     int     `json:"log_extents_max"`
	Records    int64   `json:"log_records"`
	Debt       float64 `json:"debt"`
	Free       int     `json:"extents_free"`
	RecoveryS  float64 `json:"recovery_s"`
	Holes      int     `json:"recovery_holes"`
	Failed     string  `json:"failed,omitempty"`
}

// Status returns the node's state.
func (n *Node) Status() Status {
	s := Status{Node: n.id.String(), Uptime: time.Since(n.started).Seconds(), SlabsMB: n.slabs.Cap(), FreeMB: n.slabs.Free()}
	for _, l := range n.lanes {
		u := l.store.Usage()
		r := l.store.Recovery()
		ls := LaneStatus{Lane: l.index, Path: l.dev.Path(), Segments: u.Segments, LogExtents: u.LogExtents, MaxLog: u.MaxLogExtents,
			Records: u.Records, Debt: u.Debt(), Free: u.FreeExtents, RecoveryS: l.recovery.Seconds(), Holes: len(r.Holes)}
		ls.Engine, _ = l.dev.Engine()
		ls.Durability, _ = l.dev.Durability()
		if err := l.store.Failed(); err != nil {
			ls.Failed = err.Error()
		}
		s.Lanes = append(s.Lanes, ls)
	}
	return s
}

func (n *Node) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	// The client has gone if this fails; there is nobody to tell.
	_ = enc.Encode(n.Status())
}
