"""Does token pruning clean titles, and does the picture tower learn more from clean ones?"""
