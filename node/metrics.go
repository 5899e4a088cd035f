package node

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redoubt-storage/redoubt/coalescer"
)

// metrics is the node as a Prometheus collector: it reads counters that are
// kept anyway when it is asked, so that no record pays for being counted twice.
type metrics Node

// A laneMetric is one figure of each lane.
type laneMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(l *lane, s *laneSample) float64
}

// A laneSample is what the figures of a lane are taken from, read once.
type laneSample struct {
	writes, writeBytes, reads, readBytes, flushes uint64
	logWrites, logBytes, logRuns, seals           uint64
	throttled, refused                            uint64
	throttledS                                    float64
	queued                                        int64
	logExtents, maxLog, free, segments            int
	records, maxRecords, cache                    int64
	failed                                        bool
	background                                    coalescer.Stats
}

func perLane(name, help string, kind prometheus.ValueType, value func(*lane, *laneSample) float64) laneMetric {
	return laneMetric{prometheus.NewDesc("redoubt_"+name, help, []string{"lane"}, nil), kind, value}
}

// laneMetrics lists what is told of each lane.
func laneMetrics() []laneMetric {
	c, g := prometheus.CounterValue, prometheus.GaugeValue
	return []laneMetric{
		perLane("device_write_bytes_total", "Bytes written to the device: log, pages and tables.", c, func(_ *lane, s *laneSample) float64 { return float64(s.writeBytes) }),
		perLane("device_writes_total", "Writes to the device.", c, func(_ *lane, s *laneSample) float64 { return float64(s.writes) }),
		perLane("device_read_bytes_total", "Bytes read from the device.", c, func(_ *lane, s *laneSample) float64 { return float64(s.readBytes) }),
		perLane("device_reads_total", "Reads from the device.", c, func(_ *lane, s *laneSample) float64 { return float64(s.reads) }),
		perLane("device_flushes_total", "Flushes of the device's cache.", c, func(_ *lane, s *laneSample) float64 { return float64(s.flushes) }),
		perLane("device_failed", "1 when a write or flush failed: nothing more is acknowledged.", g, func(_ *lane, s *laneSample) float64 { return btof(s.failed) }),
		perLane("log_write_bytes_total", "Bytes written to the hot log, padding included.", c, func(_ *lane, s *laneSample) float64 { return float64(s.logBytes) }),
		perLane("log_writes_total", "Device writes of the hot log: group commits.", c, func(_ *lane, s *laneSample) float64 { return float64(s.logWrites) }),
		perLane("log_runs_total", "Append frames and node's own blocks in those writes.", c, func(_ *lane, s *laneSample) float64 { return float64(s.logRuns) }),
		perLane("log_seals_total", "Empty runs that witness an idle log.", c, func(_ *lane, s *laneSample) float64 { return float64(s.seals) }),
		perLane("log_queued_bytes", "Bytes that wait for the device.", g, func(_ *lane, s *laneSample) float64 { return float64(s.queued) }),
		perLane("log_extents", "Extents of the hot log.", g, func(_ *lane, s *laneSample) float64 { return float64(s.logExtents) }),
		perLane("log_extents_max", "Extents that the hot log may have.", g, func(_ *lane, s *laneSample) float64 { return float64(s.maxLog) }),
		perLane("log_records", "Weight of the records in the log that are not in pages yet.", g, func(_ *lane, s *laneSample) float64 { return float64(s.records) }),
		perLane("log_records_max", "Bound of redoubt_log_records.", g, func(_ *lane, s *laneSample) float64 { return float64(s.maxRecords) }),
		perLane("log_cache_bytes", "Newest log that is still in memory.", g, func(_ *lane, s *laneSample) float64 { return float64(s.cache) }),
		perLane("appends_throttled_total", "Appends that waited because of the log's debt.", c, func(_ *lane, s *laneSample) float64 { return float64(s.throttled) }),
		perLane("appends_throttled_seconds_total", "How long they waited.", c, func(_ *lane, s *laneSample) float64 { return s.throttledS }),
		perLane("appends_refused_full_total", "Appends refused because the log was full.", c, func(_ *lane, s *laneSample) float64 { return float64(s.refused) }),
		perLane("extents_free", "Free extents that redo may use.", g, func(_ *lane, s *laneSample) float64 { return float64(s.free) }),
		perLane("segments", "Segments on the device.", g, func(_ *lane, s *laneSample) float64 { return float64(s.segments) }),
		perLane("recovery_seconds", "How long the last recovery took.", g, func(l *lane, _ *laneSample) float64 { return l.recovery.Seconds() }),
		perLane("recovery_holes", "Holes in the log that the last recovery judged.", g, func(l *lane, _ *laneSample) float64 { return float64(len(l.store.Recovery().Holes)) }),
	}
}

// backgroundMetrics lists what is told of coalescing, trimming and scrubbing.
func backgroundMetrics() []laneMetric {
	one := func(name, help string, value func(*coalescer.Stats) float64) laneMetric {
		return perLane(name, help, prometheus.CounterValue, func(_ *lane, s *laneSample) float64 { return value(&s.background) })
	}
	return []laneMetric{
		one("coalesce_runs_total", "Runs of pages written.", func(s *coalescer.Stats) float64 { return float64(s.Runs) }),
		one("coalesce_pages_total", "Page versions written.", func(s *coalescer.Stats) float64 { return float64(s.Pages) }),
		one("coalesce_records_total", "Records folded into them.", func(s *coalescer.Stats) float64 { return float64(s.Records) }),
		one("coalesce_read_bytes_total", "Bytes of pages and log read for it.", func(s *coalescer.Stats) float64 { return float64(s.Read) }),
		one("coalesce_write_bytes_total", "Bytes of pages written.", func(s *coalescer.Stats) float64 { return float64(s.Written) }),
		one("log_roots_total", "Roots of page maps written.", func(s *coalescer.Stats) float64 { return float64(s.Roots) }),
		one("log_moved_bytes_total", "Bytes of quiet segments' blocks written again.", func(s *coalescer.Stats) float64 { return float64(s.MovedBytes) }),
		one("extents_released_total", "Extents given back.", func(s *coalescer.Stats) float64 { return float64(s.Extents) }),
		one("scrub_pages_total", "Page versions read again and checked.", func(s *coalescer.Stats) float64 { return float64(s.ScrubbedPages) }),
		one("scrub_bytes_total", "Bytes read again and checked.", func(s *coalescer.Stats) float64 { return float64(s.ScrubbedBytes) }),
		one("scrub_cycles_total", "Scrubs of the whole device.", func(s *coalescer.Stats) float64 { return float64(s.ScrubCycles) }),
		one("damage_total", "Pages and log found damaged.", func(s *coalescer.Stats) float64 { return float64(s.Damage) }),
		one("background_errors_total", "Errors of background work that is tried again.", func(s *coalescer.Stats) float64 { return float64(s.Errors) }),
	}
}

func btof(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (l *lane) sample() *laneSample {
	d, q, u := l.dev.Stats(), l.queue.Stats(), l.store.Usage()
	return &laneSample{
		writes: d.Writes, writeBytes: d.WriteBytes, reads: d.Reads, readBytes: d.ReadBytes, flushes: d.Flushes,
		logWrites: q.Writes, logBytes: q.Bytes, logRuns: q.Runs, seals: q.Seals,
		throttled: q.Throttled, refused: q.Refused, throttledS: q.ThrottledFor.Seconds(), queued: q.QueuedBytes,
		logExtents: u.LogExtents, maxLog: u.MaxLogExtents, free: u.FreeExtents, segments: u.Segments,
		records: u.Records, maxRecords: u.MaxRecords, cache: u.CacheBytes, failed: l.store.Failed() != nil,
		background: l.coal.Stats(),
	}
}

// A nodeMetric is one figure of the node.
type nodeMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(n *Node) float64
}

func ofNode(name, help string, kind prometheus.ValueType, value func(*Node) float64) nodeMetric {
	return nodeMetric{prometheus.NewDesc("redoubt_"+name, help, nil, nil), kind, value}
}

func nodeMetrics() []nodeMetric {
	c, g := prometheus.CounterValue, prometheus.GaugeValue
	return []nodeMetric{
		ofNode("connections", "Connections that are open.", g, func(n *Node) float64 { return float64(n.server.Stats().Active) }),
		ofNode("connections_total", "Connections accepted.", c, func(n *Node) float64 { return float64(n.server.Stats().Accepted) }),
		ofNode("connections_refused_total", "Connections turned away.", c, func(n *Node) float64 { return float64(n.server.Stats().Refused) }),
		ofNode("bad_frames_total", "Connections closed for a broken frame or HELLO.", c, func(n *Node) float64 {
			s := n.server.Stats()
			return float64(s.BadFrames + s.BadHellos)
		}),
		ofNode("append_frames_total", "APPEND frames taken.", c, func(n *Node) float64 { return float64(n.server.Stats().AppendFrames) }),
		ofNode("append_bytes_total", "Bytes of APPEND frames, padding included.", c, func(n *Node) float64 { return float64(n.server.Stats().AppendBytes) }),
		ofNode("append_entries_total", "Batches in APPEND frames.", c, func(n *Node) float64 { return float64(n.server.Stats().AppendEntries) }),
		ofNode("acks_total", "SCLs sent.", c, func(n *Node) float64 { return float64(n.server.Stats().Acks) }),
		ofNode("ack_frames_total", "ACK frames that they were sent in.", c, func(n *Node) float64 { return float64(n.server.Stats().AckFrames) }),
		ofNode("pages_served_total", "Pages sent to clients.", c, func(n *Node) float64 { return float64(n.server.Stats().Pages) }),
		ofNode("slab_waits_total", "Times a socket was not read because no slab was free.", c, func(n *Node) float64 { return float64(n.server.Stats().SlabWaits) }),
		ofNode("slabs_free", "Ingest slabs that are free.", g, func(n *Node) float64 { return float64(n.slabs.Free()) }),
		ofNode("page_buffers_free", "Page buffers that are free.", g, func(n *Node) float64 { return float64(n.pages.pool.Free()) }),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	n := (*Node)(m)
	for _, f := range nodeMetrics() {
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(n))
	}
	for _, l := range n.lanes {
		s := l.sample()
		for _, f := range append(laneMetrics(), backgroundMetrics()...) {
			ch <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(l, s), strconv.Itoa(l.index))
		}
	}
}
