package main

import (
	"os"
	"time"

	"github.com/peelfs/peel/integration/coldstart"
)

func Example_table() {
	table(os.Stdout,
		coldstart.Result{Root: 300 * time.Millisecond, Output: 3 * time.Second, Received: 20_400_000, Requests: 56},
		coldstart.Result{Root: 9 * time.Second, Output: 10 * time.Second, Received: 92_400_000, Requests: 7})
	// Output:
	// file system there   first output   over the link   requests
	//             lazily, peel              0.30 s         3.00 s         20.4 MB         56
	//    full pull, containerd              9.00 s        10.00 s         92.4 MB          7
	//                    ratio                0.03           0.30            0.22        8.0
}
