package main

import (
	"os"
	"testing"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{4, 2}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 4}, 3},
	}
	for _, test := range tests {
		r := row{values: test.values}
		if got := r.median(); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
	}
}

func Example() {
	var s samples
	for _, v := range []float64{1, 3, 2} {
		s.add("time", "peel", "s", v)
		s.add("memory", "peel", "MB", 7)
		s.add("time", "containerd", "s", 10*v)
	}
	s.print(os.Stdout)
	// Output:
	// metric  system      median  unit  least  most  ratio  limit
	// time    peel        2       s     1      3     0.10
	//         containerd  20      s     10     30    1.00
	// memory  peel        7       MB    7      7
}
