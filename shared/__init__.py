"""What both programs mean by the same word: clips, taxonomy, labels, log-mel, backbone, store."""
