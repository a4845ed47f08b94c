package worker

func work(dir, runtime string) error { return nil }
