// Allocates, drops and checks memory from several goroutines, with the collector at work: allocate SECONDS SEED.
package main

import (
	"fmt"
	"math/rand"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"
)

type block struct {
	data    []byte
	kind    int
	version int
}

// A pattern of 16 bytes: blocks of one kind are made of the same pages wherever they lie.
func (b *block) at(i int) byte { return byte((i%16+1)*37*(b.kind+3) + b.version*11) }

func fresh(r *rand.Rand, size int, version int) *block {
	b := &block{make([]byte, size), r.Intn(5), version}
	for i, c := range b.data {
		if c != 0 {
			fail("fresh memory", b, i)
		}
	}
	for i := range b.data {
		b.data[i] = b.at(i)
	}
	return b
}

func (b *block) check() {
	for i, c := range b.data {
		if c != b.at(i) {
			fail("content", b, i)
		}
	}
}

func fail(what string, b *block, i int) {
	fmt.Printf("WRONG %s: byte %d of %d is %#x\n", what, i, len(b.data), b.data[i])
	os.Exit(1)
}

func main() {
	seconds, _ := strconv.ParseFloat(os.Args[1], 64)
	seed, _ := strconv.Atoi(os.Args[2])
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	fmt.Println("READY")
	var all sync.WaitGroup
	for n := 0; n < 4; n++ {
		all.Add(1)
		go func(n int) {
			defer all.Done()
			r := rand.New(rand.NewSource(int64(seed*8 + n)))
			resting := make([]*block, 64)
			busy := make([]*block, 256)
			moved := time.Now()
			next := 0
			for time.Now().Before(end) {
				for k := 0; k < 32; k++ {
					i := r.Intn(len(busy))
					if busy[i] != nil {
						busy[i].check()
					}
					busy[i] = fresh(r, 1+r.Intn(20000), r.Intn(1000))
				}
				if time.Since(moved) > 20*time.Millisecond {
					for k := 0; k < 4; k++ {
						i := next % len(resting)
						next++
						if resting[i] != nil {
							resting[i].check()
						}
						resting[i] = fresh(r, 65536, 0)
					}
					if n == 0 && r.Intn(16) == 0 {
						debug.FreeOSMemory() // discards what is free
					}
					moved = time.Now()
				}
			}
			for _, b := range append(resting, busy...) {
				if b != nil {
					b.check()
				}
			}
		}(n)
	}
	all.Wait()
	fmt.Println("OK")
}
