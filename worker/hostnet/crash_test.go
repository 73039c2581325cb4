package hostnet_test

func worker(args []string) {}
