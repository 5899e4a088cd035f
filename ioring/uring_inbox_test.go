//go:build giouring

package ioring

import (
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// chain links n new ops as Submit does and numbers them from *next.
func chain(next *int, n int) (first, last *Op) {
	for range n {
		op := &Op{Ctx: *next}
		*next++
		if op.next = last; first == nil {
			first = op
		}
		last = op
	}
	return first, last
}

// TestInboxAgainstModel compares random sequences with a slice and a flag.
func TestInboxAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b inbox
		var taken opList
		next, first := 0, 0 // numbers of the next op, and of the oldest in the inbox
		slept, asleep, shut := false, false, false
		mustTake := func(n, want uint64) {
			if n != want {
				t.Fatalf("took %d ops, want %d", n, want)
			}
			for ; first < next; first++ {
				if got := taken.popFront().Ctx.(int); got != first {
					t.Fatalf("took op %d, want op %d", got, first)
				}
			}
			if !taken.empty() || taken.tail != nil {
				t.Fatal("something is left in the list")
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				was := next
				wake, ok := b.push(chain(&next, rapid.IntRange(1, 4).Draw(t, "ops")))
				if ok == shut || wake != (ok && asleep) {
					t.Fatalf("push: wake %v, ok %v; asleep %v, shut %v", wake, ok, asleep, shut)
				}
				if asleep = false; shut {
					next = was
				}
			},
			"sleep": func(t *rapid.T) {
				if slept || shut {
					t.Skip("asleep or shut")
				}
				slept = b.sleep()
				if asleep = slept; slept != (first == next) {
					t.Fatalf("sleep: %v with %d ops in the inbox", slept, next-first)
				}
			},
			"take": func(t *rapid.T) {
				if shut {
					t.Skip("shut")
				}
				want := uint64(next - first)
				n, woken := b.take(&taken, slept)
				if woken != (slept && !asleep) {
					t.Fatalf("take: woken %v; slept %v, asleep %v", woken, slept, asleep)
				}
				slept, asleep = false, false
				mustTake(n, want)
			},
			"close": func(t *rapid.T) {
				if slept || shut || rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
					t.Skip("not now")
				}
				shut = true
				mustTake(b.close(&taken), uint64(next-first))
			},
		})
	})
}

// TestInboxLosesNothing lets many goroutines push while one sleeps and takes. A
// sleep lasts until a push says wake; if none ever did, the test would hang.
func TestInboxLosesNothing(t *testing.T) {
	const (
		goroutines = 8
		pushes     = 5000
	)
	var b inbox
	bell := make(chan struct{}, 1)
	for g := range goroutines {
		go func() {
			next := g * pushes * 2
			for range pushes {
				if wake, _ := b.push(chain(&next, 2)); wake {
					bell <- struct{}{}
				}
			}
		}()
	}
	seen := make([]int, goroutines)
	for left := goroutines * pushes * 2; left > 0; {
		slept := b.sleep()
		if slept {
			<-bell
		}
		var l opList
		n, woken := b.take(&l, slept)
		if woken != slept {
			t.Fatal("a bell rang for a sleep that nobody broke")
		}
		left -= int(n)
		for !l.empty() {
			op := l.popFront().Ctx.(int)
			g := op / (pushes * 2)
			if op%(pushes*2) != seen[g] {
				t.Fatalf("goroutine %d: op %d came when %d was due", g, op%(pushes*2), seen[g])
			}
			seen[g]++
		}
	}
}

// TestInboxCloseAgainstPush closes while others push: each op is either left to
// the closer or refused.
func TestInboxCloseAgainstPush(t *testing.T) {
	for range 200 {
		var b inbox
		var pushed, refused [4]int
		var wg sync.WaitGroup
		start := make(chan struct{})
		for g := range pushed {
			wg.Go(func() {
				<-start
				for next := 0; next < 50; {
					if _, ok := b.push(chain(&next, 1)); ok {
						pushed[g]++
					} else {
						refused[g]++
					}
				}
			})
		}
		close(start)
		var l opList
		left := int(b.close(&l))
		wg.Wait()
		sum := 0
		for g := range pushed {
			sum += pushed[g]
			if pushed[g]+refused[g] != 50 {
				t.Fatalf("%d pushed and %d refused of 50", pushed[g], refused[g])
			}
		}
		for n := left; n > 0; n-- {
			l.popFront()
		}
		if sum != left || !l.empty() {
			t.Fatalf("%d ops were taken in, %d were left", sum, left)
		}
	}
}
