// Package faults is a registry on a bad day: an HTTP proxy on loopback that
// spoils some of the answers it passes on, by a plan that a seed repeats.
//
// It knows HTTP/1.1 and the ways in which an answer goes wrong. Of registries
// it knows only how the address of a blob looks.
package faults

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/http"
)

// Fault is one way for an answer to go wrong.
type Fault string

// Faults of the connection and of the body, at some byte of it.
const (
	Reset    Fault = "reset"    // the connection is reset
	Stall    Fault = "stall"    // nothing more comes
	Drip     Fault = "drip"     // the rest comes a byte at a time
	Truncate Fault = "truncate" // the connection ends before the Content-Length
	Flip     Fault = "flip"     // one bit is another
	Short    Fault = "short"    // the Content-Length is too small, and the body agrees with it
	Long     Fault = "long"     // the Content-Length is too large, and the body agrees with it
	Foreign  Fault = "foreign"  // the bytes are those of another blob
)

// Faults of the status. They have no body.
const (
	Unauthorized Fault = "401"
	Forbidden    Fault = "403"
	NotFound     Fault = "404"
	BadRange     Fault = "416"
	Busy         Fault = "429" // with Retry-After: 1
	Broken       Fault = "5xx" // 500, 502, 503 or 504
	Whole        Fault = "200 to a range"
	Circle       Fault = "redirect loop"
)

// All returns every fault.
func All() []Fault {
	return []Fault{
		Reset, Stall, Drip, Truncate, Flip, Short, Long, Foreign,
		Unauthorized, Forbidden, NotFound, BadRange, Busy, Broken, Whole, Circle,
	}
}

// Plan says which requests meet a fault. The zero value is a good day.
//
// What a request meets follows from the seed, the request, and how often the
// same one came before under this plan, but not from other requests, so that
// the order in which they happen to come does not matter.
type Plan struct {
	Seed   uint64
	Rate   float64 // the share of GET and HEAD requests that meet a fault, 0 to 1
	Faults []Fault // those to choose from, all equally likely; All if empty
}

// String returns what it takes to repeat the plan.
func (p Plan) String() string {
	return fmt.Sprintf("seed %d, rate %g, faults %q", p.Seed, p.Rate, p.choice())
}

func (p Plan) choice() []Fault {
	if len(p.Faults) == 0 {
		return All()
	}
	return p.Faults
}

// meeting is a fault, or none, and where: the share of the body before it.
type meeting struct {
	fault Fault // "" for none
	place float64
}

// draw returns what the nth request of its kind meets.
func (p Plan) draw(request string, nth int) meeting {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d", request, nth)
	r := rand.New(rand.NewPCG(p.Seed, h.Sum64()))
	if r.Float64() >= p.Rate {
		return meeting{}
	}
	all := p.choice()
	return meeting{all[r.IntN(len(all))], r.Float64()}
}

// status returns the status of a fault that is one, or else 0.
func (m meeting) status() int {
	switch m.fault {
	case Unauthorized:
		return http.StatusUnauthorized
	case Forbidden:
		return http.StatusForbidden
	case NotFound:
		return http.StatusNotFound
	case BadRange:
		return http.StatusRequestedRangeNotSatisfiable
	case Busy:
		return http.StatusTooManyRequests
	case Broken:
		return []int{500, 502, 503, 504}[int(m.place*4)]
	case Circle:
		return http.StatusTemporaryRedirect
	}
	return 0
}
