package main

import (
	"encoding/binary"
	"path/filepath"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// raftWAL is hashicorp/raft-wal.
type raftWAL struct {
	w     *wal.WAL
	index uint64
	logs  []*raft.Log
	spare []raft.Log
}

func openRaftWAL(dir string) (log, error) {
	w, err := wal.Open(dir)
	if err != nil {
		return nil, err
	}
	return &raftWAL{w: w}, nil
}

func (l *raftWAL) commit(records [][]byte) error {
	if len(l.spare) < len(records) {
		l.spare = make([]raft.Log, 2*len(records))
	}
	l.logs = l.logs[:0]
	for i, r := range records {
		l.index++
		l.spare[i] = raft.Log{Index: l.index, Term: 1, Data: r}
		l.logs = append(l.logs, &l.spare[i])
	}
	return l.w.StoreLogs(l.logs)
}

func (l *raftWAL) close() error { return l.w.Close() }

// etcdWAL is etcd's.
type etcdWAL struct {
	w       *etcdwal.WAL
	index   uint64
	term    uint64
	entries []*raftpb.Entry
	spare   []*raftpb.Entry
}

func openEtcdWAL(dir string) (log, error) {
	w, err := etcdwal.Create(zap.NewNop(), filepath.Join(dir, "wal"), nil)
	if err != nil {
		return nil, err
	}
	return &etcdWAL{w: w, term: 1}, nil
}

func (l *etcdWAL) commit(records [][]byte) error {
	for len(l.spare) < len(records) {
		l.spare = append(l.spare, &raftpb.Entry{Term: &l.term, Index: new(uint64)})
	}
	l.entries = l.spare[:len(records)]
	for i, r := range records {
		l.index++
		*l.entries[i].Index = l.index
		l.entries[i].Data = r
	}
	return l.w.Save(&raftpb.HardState{Term: &l.term, Commit: &l.index}, l.entries)
}

func (l *etcdWAL) close() error { return l.w.Close() }

// pebbleLog is pebble's, one batch a record, synced; pebble groups them.
type pebbleLog struct {
	db  *pebble.DB
	key atomic.Uint64
}

func openPebble(dir string) (log, error) {
	db, err := pebble.Open(dir, &pebble.Options{MemTableSize: 256 << 20, Logger: quiet{}})
	if err != nil {
		return nil, err
	}
	return &pebbleLog{db: db}, nil
}

func (l *pebbleLog) commit(records [][]byte) error {
	b := l.db.NewBatch()
	defer b.Close()
	for _, r := range records {
		var key [8]byte
		binary.BigEndian.PutUint64(key[:], l.key.Add(1))
		if err := b.Set(key[:], r, nil); err != nil {
			return err
		}
	}
	return l.db.Apply(b, pebble.Sync)
}

func (l *pebbleLog) close() error { return l.db.Close() }

// quiet says nothing.
type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}
